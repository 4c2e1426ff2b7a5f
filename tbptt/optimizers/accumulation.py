"""One update for the gradients of several windows."""

from typing import NamedTuple

import tensorflow as tf

from tbptt import checks
from tbptt.optimizers.transform import GradientTransform
from tbptt.types import Nest


class AccumulationState(NamedTuple):
    """What `accumulate` keeps between windows.

    Attributes:
      count: int64, windows added up since the last update.
      total: sum of their gradients, like the parameters.
      inner: the optimizer's state.
    """

    count: tf.Tensor
    total: Nest
    inner: Nest


def accumulate(windows: int, optimizer: GradientTransform) -> GradientTransform:
    """Updates by the mean gradient of so many windows, and in between not at all.

        G <- G + r g;   every `windows` windows:  u <- optimizer(G / windows),  G <- 0

    So more rows than fit into memory count for an update, at the price of windows in which the
    state is computed with older parameters. Each window counts by its own rate r, `Window.rate`,
    which is 1 without jitter. A window that is skipped is not counted.

    Args:
      windows: >= 1.
      optimizer: what makes an update of a gradient, clipping included.

    Example:
      >>> optimizer = accumulate(2, sgd(1.0))
      >>> opt_state = optimizer.init([tf.zeros([1])])
      >>> for gradient in (1.0, 5.0):
      ...     updates, opt_state = optimizer.update([tf.constant([gradient])], opt_state, [], 0)
      ...     print(updates[0].numpy())
      [0.]
      [-3.]
    """
    checks.check_at_least("windows", windows, 1)

    def init(parameters: Nest) -> AccumulationState:
        zeros = tf.nest.map_structure(tf.zeros_like, parameters)
        return AccumulationState(tf.zeros([], tf.int64), zeros, optimizer.init(parameters))

    def update(
        updates: Nest, state: AccumulationState, parameters: Nest, step: tf.Tensor
    ) -> tuple[Nest, AccumulationState]:
        total = tf.nest.map_structure(tf.add, state.total, updates)
        due = tf.equal(state.count + 1, windows)
        mean = tf.nest.map_structure(lambda t: t / windows, total)
        made, inner = optimizer.update(mean, state.inner, parameters, step)

        def where_due(new: Nest, old: Nest) -> Nest:
            return tf.nest.map_structure(lambda a, b: tf.where(due, a, b), new, old)

        zeros = tf.nest.map_structure(tf.zeros_like, total)
        count = tf.where(due, tf.zeros_like(state.count), state.count + 1)
        new = AccumulationState(count, where_due(zeros, total), where_due(inner, state.inner))
        return where_due(made, zeros), new

    description = {
        "name": "accumulate", "windows": windows, "optimizer": optimizer.description,
    }  # fmt: skip
    return GradientTransform(init, update, description, scale_first=True)
