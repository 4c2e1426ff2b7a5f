"""Contestants for `tools.bench.cost_model`: data-parallel training, or the all-reduce alone.

Processes train together; or at the same time, but separately, with the program of many replicas; or
they only run the all-reduce.
"""

import functools
from typing import Any

from tools.bench.contestants import OURS, Contestant, Run, Size, ours


def reduce(size: Size, *, numbers: int | None = None) -> Run:
    """Builds an all-reduce of `numbers` float32 numbers, by default the size's parameters."""
    import tensorflow as tf

    from tbptt.distribution import open_replicas

    strategy = open_replicas("multi_worker").strategy
    vector = tf.zeros([numbers or size.parameters])

    def one(vector: Any) -> Any:
        context = tf.distribute.get_replica_context()
        here = tf.identity(vector)  # an all-reduce runs on the device of its parts
        return context.all_reduce(tf.distribute.ReduceOp.SUM, here)

    @tf.function(autograph=False)
    def add_up(times: Any) -> Any:
        return tf.while_loop(
            lambda k, _: k < times,
            lambda k, total: (k + 1, strategy.run(one, [total])),
            (0, vector),
            parallel_iterations=1,
        )[1]

    def run(windows: int) -> float:
        return float(add_up(tf.constant(windows))[0])

    return run


TOGETHER: dict[str, Contestant] = {
    "worker": Contestant(OURS, functools.partial(ours, strategy="multi_worker")),
    "alone": Contestant(OURS, functools.partial(ours, strategy="mirrored")),
    "reduce": Contestant(OURS, reduce),
    "reduce-nothing": Contestant(OURS, functools.partial(reduce, numbers=1)),
}
