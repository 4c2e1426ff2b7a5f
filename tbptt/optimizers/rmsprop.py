"""RMSProp: gradients divided by the root of their running mean square."""

from typing import NamedTuple

import tensorflow as tf

from tbptt import checks
from tbptt.optimizers.schedules import Schedule, scale_by_learning_rate
from tbptt.optimizers.transform import GradientTransform, bounded, chain, widened
from tbptt.types import Nest


class RMSPropState(NamedTuple):
    """The running means that RMSProp keeps of every parameter's gradient.

    Attributes:
      nu: running mean of squared gradients, like the parameters, at least float32.
    """

    nu: Nest


def rmsprop(
    learning_rate: float | Schedule, *, decay: float = 0.99, epsilon: float = 1e-8
) -> GradientTransform:
    """Makes the RMSProp optimizer, `p <- p - rate * g / (sqrt(nu) + epsilon)`, `nu` starting at 0.

        nu <- decay * nu + (1 - decay) * g^2

    Args:
      learning_rate: a number, or a schedule.
      decay: 0 <= decay < 1.
      epsilon: added outside the root, as in PyTorch.

    Reference: Tieleman & Hinton (2012), Lecture 6.5, Neural networks for machine learning.
    """
    checks.check_between("decay", decay, 0.0, 1.0)

    def init(parameters: Nest) -> Nest:
        return RMSPropState(tf.nest.map_structure(lambda p: tf.zeros_like(widened(p)), parameters))

    def update(
        updates: Nest, state: RMSPropState, parameters: Nest, step: tf.Tensor
    ) -> tuple[Nest, RMSPropState]:
        del parameters, step
        gradients = tf.nest.map_structure(bounded, updates)
        nu = tf.nest.map_structure(
            lambda v, g: decay * v + (1.0 - decay) * g * g, state.nu, gradients
        )
        scaled = tf.nest.map_structure(
            lambda g, v, u: tf.cast(g / (tf.sqrt(v) + epsilon), u.dtype), gradients, nu, updates
        )
        return scaled, RMSPropState(nu)

    description = {"name": "scale_by_rmsprop", "decay": decay, "epsilon": epsilon}
    scaling = GradientTransform(init, update, description)
    return chain(scaling, scale_by_learning_rate(learning_rate))
