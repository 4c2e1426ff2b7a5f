"""Gradient accumulation: one update for the gradients of several windows."""

from typing import NamedTuple

import tensorflow as tf

from tbptt import checks
from tbptt.optimizers.transform import GradientTransform
from tbptt.types import Nest


class AccumulationState(NamedTuple):
    """The state of `accumulate` between windows: the gradients added up so far.

    Attributes:
      count: int64, the number of windows added up since the last update.
      total: the sum of their gradients, like the parameters.
      inner: the state of the optimizer inside.
    """

    count: tf.Tensor
    total: Nest
    inner: Nest


def accumulate(windows: int, optimizer: GradientTransform) -> GradientTransform:
    """Accumulates gradients: updates once in `windows` windows, by their mean gradient.

        G <- G + r g;   every `windows` windows:  u <- optimizer(G / windows),  G <- 0

    So an update can use more rows than fit into memory, but all windows between two updates are
    computed with the same parameters. The gradient of each window is multiplied by its own
    r, `Window.update_scale`, which is 1 without jitter. A window that is skipped is not counted.

    Args:
      windows: the number of windows for one update, >= 1.
      optimizer: the optimizer that makes the update, clipping included.

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
