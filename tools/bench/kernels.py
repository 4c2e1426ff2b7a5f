"""Measures the loops of the native kernels beside those of XLA's own operations, in one process."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tbptt import native
from tbptt.native import errors, library, products
from tbptt.types import Controls
from tbptt.unroll import fused
from tools.bench.contestants import Size

STEP = Size(1, 1, 512, 512, 1, 256, windows_per_call=1)
RESETS = 0.01  # the share of rows that a step resets


Program = Callable[[], Any]
NAMES = ("native", "xla")
Contestants = dict[tuple[str, str], Program]  # by what is computed, and who computes it


def loops(name: str, arrays: Sequence[tf.Tensor], dtype: tf.DType, *, back: bool) -> Program:
    """Returns a compiled program of the forward loop, or of both loops without weight gradient."""

    @tf.function(autograph=False, jit_compile=True)
    def program(
        z_x: tf.Tensor, w_h: tf.Tensor, hidden: tf.Tensor, cell: tf.Tensor, *reset: tf.Tensor
    ) -> list[tf.Tensor]:
        controls = Controls(reset[0] if reset else None, None, None)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([z_x, hidden, cell] if back else [])
            more = ((hidden, cell), controls, None)
            if name == "native":
                bias = tf.zeros(w_h.shape[-1:])
                outputs, final = native.loops.lstm(z_x, w_h, bias, *more, compute_dtype=dtype)
            else:
                outputs, final = fused.lstm.run(z_x, w_h, *more, compute_dtype=dtype)
            loss = tf.reduce_sum(outputs) if back else None
        return [outputs, *final, *(tape.gradient(loss, [z_x, hidden, cell]) if back else [])]

    return lambda: program(*arrays)


def weights(name: str, entered: tf.Tensor, d_z: tf.Tensor, dtype: tf.DType) -> Program:
    """Returns a compiled program of the gradient of the recurrent weights."""
    size = entered.shape[-1]

    @tf.function(autograph=False, jit_compile=True)
    def program(entered: tf.Tensor, d_z: tf.Tensor) -> tf.Tensor:
        if name == "native":
            return products.weight_gradient(entered, d_z, size, rounds=dtype == tf.bfloat16)
        return fused.loop.weight_gradient(entered, d_z, dtype)

    return lambda: program(entered, d_z)


def programs(size: Size, dtype: tf.DType) -> Contestants:
    """Returns the programs of a size, for random weights and inputs."""
    rng = np.random.default_rng(0)
    steps, rows, hidden = size.window_length, size.rows, size.hidden

    def normal(*shape: int) -> tf.Tensor:
        return tf.constant(rng.normal(size=shape), tf.float32)

    arrays = [
        normal(steps, rows, 4 * hidden), normal(hidden, 4 * hidden) / hidden**0.5,
        normal(rows, hidden), normal(rows, hidden),
    ]  # fmt: skip
    entered = normal(steps, rows, hidden)
    reset = tf.constant(rng.random([steps, rows]) < RESETS)
    found: Contestants = {}
    for name in NAMES:
        found["forward", name] = loops(name, arrays, dtype, back=False)
        found["both loops", name] = loops(name, arrays, dtype, back=True)
        found["with resets", name] = loops(name, [*arrays, reset], dtype, back=True)
        found["weight gradient", name] = weights(name, entered, arrays[0], dtype)
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
