"""Says which operations of a compiled training window take its time, as TensorFlow's profiler sees.

    python -m tools.bench.profile_window --size=char --backend=native
    python -m tools.bench.profile_window --size=char --backend=fused

Two operations that run side by side on different threads both count in full, so the parts may come
to more than the window.
"""

import collections
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable

from absl import app, flags

from tools.bench.contestants import SIZES, build_ours

SIZE = flags.DEFINE_enum("size", "char", list(SIZES), "Model and windows.")
BACKEND = flags.DEFINE_enum("backend", "auto", ["auto", "native", "fused", "scan"], "Backend.")
BFLOAT16 = flags.DEFINE_bool("bfloat16", False, "Whether products are computed in bfloat16.")
LINES = flags.DEFINE_integer("lines", 20, "Operations shown.", lower_bound=1)
CALLS = flags.DEFINE_integer("calls", 5, "Calls that are timed before the profile.", lower_bound=1)
AROUND = ("Execut", "train", "BlockUntilReady", "while", "Await")  # not operations themselves


def profile(call: Callable[[], None], folder: str) -> collections.Counter[str]:
    """Returns the milliseconds of each operation in one call, by name."""
    import tensorflow as tf
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    options = tf.profiler.experimental.ProfilerOptions(host_tracer_level=3)
    with tf.profiler.experimental.Profile(folder, options):
        call()
    found: collections.Counter[str] = collections.Counter()
    for path in pathlib.Path(folder).rglob("*.xplane.pb"):
        for plane in xplane_pb2.XSpace.FromString(path.read_bytes()).planes:
            for line in plane.lines:
                for event in line.events:
                    name = plane.event_metadata[event.metadata_id].name
                    found[name] += event.duration_ps / 1e9
    return found


def seconds(call: Callable[[], None]) -> float:
    """Returns the time of a call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def main(_: list[str]) -> None:
    """Times a call of several windows, profiles one, and prints both per window."""
    size = SIZES[SIZE.value]
    trainer, loop_state, chunk = build_ours(size, backend=BACKEND.value, bfloat16=BFLOAT16.value)

    def call() -> None:
        nonlocal loop_state
        loop_state, metrics = trainer(loop_state, chunk)
        metrics.read()

    call()  # compiles it
    window = statistics.median(seconds(call) for turn in range(CALLS.value)) / size.windows_per_call
    with tempfile.TemporaryDirectory() as folder:
        found = profile(call, folder)
    print(f"{SIZE.value}, {BACKEND.value}: {window * 1e3:.2f} ms a window")
    print("| operation | ms a window |\n|---|---:|")
    operations = [(n, ms) for n, ms in found.most_common() if not any(a in n for a in AROUND)]
    for name, ms in operations[: LINES.value]:
        print(f"| {name} | {ms / size.windows_per_call:.3f} |")


if __name__ == "__main__":
    app.run(main)
