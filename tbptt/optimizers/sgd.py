"""Stochastic gradient descent, plain and with momentum."""

import tensorflow as tf

from tbptt import checks
from tbptt.optimizers.schedules import Schedule, scale_by_learning_rate
from tbptt.optimizers.transform import GradientTransform, chain
from tbptt.types import Nest


def sgd(
    learning_rate: float | Schedule, *, momentum: float = 0.0, nesterov: bool = False
) -> GradientTransform:
    """Makes stochastic gradient descent, `p <- p - rate * g`, or `p <- p - rate * trace(g)`.

    Args:
      learning_rate: a number, or a schedule.
      momentum: the decay of `trace`; with 0 there is no momentum and no state.
      nesterov: see `trace`.
    """
    if nesterov and momentum == 0.0:
        raise ValueError(
            "nesterov (True) has no effect with momentum (0.0), whose next step it looks at. Use "
            "momentum=0.9, or nesterov=False."
        )
    down = scale_by_learning_rate(learning_rate)
    return down if momentum == 0.0 else chain(trace(momentum, nesterov=nesterov), down)


def trace(decay: float, *, nesterov: bool = False) -> GradientTransform:
    """Adds momentum: a sum of past gradients that decays exponentially.

        m <- decay * m + g
        u <- m,   or g + decay * m  (nesterov)

    Args:
      decay: 0 <= decay < 1.
      nesterov: whether to use Nesterov's momentum, which looks one step ahead.

    Reference: Sutskever et al. (2013), On the importance of initialization and momentum
      in deep learning.
    """
    checks.check_between("momentum", decay, 0.0, 1.0)

    def init(parameters: Nest) -> Nest:
        return tf.nest.map_structure(tf.zeros_like, parameters)

    def update(updates: Nest, state: Nest, parameters: Nest, step: tf.Tensor) -> tuple[Nest, Nest]:
        del parameters, step
        new = tf.nest.map_structure(lambda m, g: decay * m + g, state, updates)
        if not nesterov:
            return new, new
        return tf.nest.map_structure(lambda m, g: g + decay * m, new, updates), new

    description = {"name": "trace", "decay": decay, "nesterov": nesterov}
    return GradientTransform(init, update, description)
