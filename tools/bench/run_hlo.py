"""Runs the compiled training loop by JAX's PJRT client, without TensorFlow if --load is given.

    python -m tools.bench.run_hlo --config=char
    python -m tools.bench.run_hlo --config=char --export=/tmp/step      # here
    python -m tools.bench.run_hlo --load=/tmp/step --peer=torch         # where jax and torch are

One call of the trainer, many windows in one program, is exported as StableHLO together with its
arguments and TensorFlow's results. It is compiled for the device that JAX has, run, compared with
TensorFlow's results and timed; --peer=torch times `torch.nn.LSTM` on the same sizes in turn with
it. The exit status is 1 if a result differs by more than --tolerance.
"""

import importlib.util
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from absl import app, flags, logging

from tools.bench import recorded
from tools.bench.contestants import SIZES, torch_lstm
from tools.bench.pjrt import Program

CONFIG = flags.DEFINE_string("config", "char", f"Model to run, of {', '.join(SIZES)}.")
EXPORT = flags.DEFINE_string("export", None, "New folder to write to; nothing is run by JAX.")
LOAD = flags.DEFINE_string("load", None, "Folder to read; instead of TensorFlow.")
PEER = flags.DEFINE_enum("peer", None, ["torch"], "A framework to time for comparison.")
ROUNDS = flags.DEFINE_integer("rounds", 15, "Timed calls.", lower_bound=1)
TOLERANCE = flags.DEFINE_float(
    "tolerance", 1e-4, "Largest difference, in units of a result's largest number; TF32: 1e-2."
)


def main(argv: list[str]) -> None:
    """Exports a step; or loads or records one, runs it, compares its results and times it."""
    del argv
    logging.set_verbosity(logging.WARNING)
    if CONFIG.value not in SIZES:
        sys.exit(f"error: --config ({CONFIG.value!r}) must be of {', '.join(SIZES)}.")
    if EXPORT.value and pathlib.Path(EXPORT.value).exists():
        sys.exit(f"error: {EXPORT.value} is there already. Give the name of a new folder.")
    if LOAD.value and not pathlib.Path(LOAD.value, recorded.ARRAYS).is_file():
        sys.exit(f"error: {LOAD.value} is no folder that --export has written.")
    for package in ([] if EXPORT.value else ["jax"]) + ([PEER.value] if PEER.value else []):
        if importlib.util.find_spec(package) is None:
            sys.exit(f"error: {package} is not installed: pip install -e '.[bench]'")
    step = (
        recorded.read(pathlib.Path(LOAD.value))
        if LOAD.value
        else recorded.record(SIZES[CONFIG.value])
    )
    if EXPORT.value:
        recorded.write(step, pathlib.Path(EXPORT.value))
        print(f"{EXPORT.value}: {len(step.arguments)} arguments, {len(step.results)} results")
        return
    program = Program(step.text, step.arguments, step.carried)
    windows = step.size.windows_per_call
    off = recorded.difference(program(), step.results)
    print(f"{program.device.device_kind}: largest difference from TensorFlow's results {off:.1e}")
    runs: dict[str, Callable[[], Any]] = {"tbptt": program}
    if PEER.value:
        peer = torch_lstm(step.size)
        runs["torch"] = lambda: peer(windows)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS.value + 1):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - began) / windows)
    for name, seconds in times.items():
        print(f"{name}: {statistics.median(seconds[1:]) * 1e3:.2f} ms a window")
    if PEER.value:
        ratios = [b / a for a, b in zip(times["tbptt"], times["torch"], strict=True)][1:]
        print(f"torch over tbptt: {statistics.median(ratios):.2f}")
    sys.exit(0 if off <= TOLERANCE.value else 1)


if __name__ == "__main__":
    app.run(main)
