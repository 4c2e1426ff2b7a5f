"""Measures a layer on the native kernels beside one on XLA's own operations, in one process."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

import tbptt
from tbptt.native import errors, library
from tbptt.types import Controls
from tools.bench.contestants import Size

STEP = Size(1, 1, 512, 512, 1, 256, windows_per_call=1)
RESETS = 0.01  # the share of rows that a step resets


Program = Callable[[], Any]
NAMES = {"native": "native", "xla": "fused"}  # and the backend of each
WHAT = {
    "forward": dict(back=False),
    "training": dict(back=True),
    "with resets": dict(back=True, resets=True),
}
Contestants = dict[tuple[str, str], Program]  # by what is computed, and who computes it


def layer(
    backend: str, size: Size, dtype: tf.DType, *, back: bool, resets: bool = False
) -> Program:
    """Returns a compiled program of one LSTM layer over a window, with all gradients if `back`."""
    rng = np.random.default_rng(0)
    core = tbptt.LSTM(
        size.embedding,
        size.hidden,
        seed=tbptt.make_seed(0),
        backend=backend,
        compute_dtype=None if dtype == tf.float32 else dtype,
    )
    shape = [size.window_length, size.rows]
    inputs = tf.constant(rng.normal(size=[*shape, size.embedding]), tf.float32)
    controls = Controls(tf.constant(rng.random(shape) < RESETS) if resets else None)
    state = core.initial_state(size.rows)

    @tf.function(autograph=False, jit_compile=True)
    def program(inputs: tf.Tensor, state: Any, controls: Controls) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs, final = core(inputs, state, controls)
            loss = tf.reduce_sum(outputs)
        wanted = [inputs, core.w_x, core.w_h, core.b]
        return [outputs, *final, *(tape.gradient(loss, wanted) if back else [])]

    return lambda: program(inputs, state, controls)


def programs(size: Size, dtype: tf.DType) -> Contestants:
    """Returns the programs of a size, for random weights and inputs."""
    found: Contestants = {}
    for name, backend in NAMES.items():
        for what, options in WHAT.items():
            found[what, name] = layer(backend, size, dtype, **options)
    return found


def measure(contestants: Contestants, rounds: int, round_ms: float) -> dict[tuple[str, str], float]:
    """Returns the median milliseconds of each, in turn, for at least `round_ms` in each round."""
    calls = {}
    for key, run in contestants.items():
        run()  # compiles it
        began = time.perf_counter()
        run()
        calls[key] = 1 + int(round_ms / 1e3 / (time.perf_counter() - began))
    found: dict[tuple[str, str], list[float]] = {key: [] for key in contestants}
    for _ in range(rounds):
        for key, run in contestants.items():
            began = time.perf_counter()
            for _ in range(calls[key]):
                run()
            found[key].append((time.perf_counter() - began) / calls[key] * 1e3)
    return {key: statistics.median(times) for key, times in found.items()}


def measure_here(
    sizes: Mapping[str, Size], types: Sequence[str], *, rounds: int, round_ms: float
) -> dict[str, Any]:
    """Loads the path that `TBPTT_NATIVE` names and measures it; says why not if that fails.

    Args:
      sizes: the sizes to measure, by name.
      types: the types of the products.
      rounds, round_ms: as of `measure`.

    Returns:
      `why_not`, or the path's instructions, its file, the seconds of compiling and loading it,
      `rows` of milliseconds, see `by_what`, and one row for a step of one row.
    """
    tf.get_logger().setLevel("ERROR")  # it warns of many programs from one source
    began = time.perf_counter()
    try:
        loaded = library.load()
    except errors.Unavailable as error:
        return {"why_not": error.reason}
    loaded_s = time.perf_counter() - began - loaded.seconds
    rows = []
    for name, size in sizes.items():
        for dtype in types:
            contestants = programs(size, tf.as_dtype(dtype))
            rows += by_what(measure(contestants, rounds, round_ms), name, dtype)
    step = {key: run for key, run in programs(STEP, tf.float32).items() if key[0] == "forward"}
    return {
        "path": loaded.path, "file": str(loaded.file), "compiled_s": loaded.seconds,
        "loaded_s": loaded_s, "rows": rows,
        "step": by_what(measure(step, rounds, round_ms), "step", "float32")[0],
    }  # fmt: skip


def by_what(times: Mapping[tuple[str, str], float], size: str, dtype: str) -> list[dict[str, Any]]:
    """Returns one row for each thing that both computed, with the milliseconds of both."""
    whats = dict.fromkeys(what for what, _ in times)
    return [
        {"size": size, "type": dtype, "what": what} | {name: times[what, name] for name in NAMES}
        for what in whats
    ]
