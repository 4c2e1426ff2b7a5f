"""Adam, and AdamW: Adam with decoupled weight decay."""

from typing import NamedTuple

import tensorflow as tf

from tbptt import checks
from tbptt.optimizers.schedules import Schedule, scale_by_learning_rate
from tbptt.optimizers.transform import GradientTransform, bounded, chain, stateless, widened
from tbptt.types import Nest


class AdamState(NamedTuple):
    """The running means that Adam keeps of every parameter's gradient.

    Attributes:
      count: int64, the number of updates made; a skipped window makes none.
      mu: running mean of gradients, like the parameters, at least float32.
      nu: running mean of squared gradients, likewise.
    """

    count: tf.Tensor
    mu: Nest
    nu: Nest


def scale_by_adam(b1: float = 0.9, b2: float = 0.999, epsilon: float = 1e-8) -> GradientTransform:
    """Divides the running mean of gradients by the root of their mean square, as Adam does.

        mu <- b1 * mu + (1 - b1) * g,       nu <- b2 * nu + (1 - b2) * g^2
        u  <- (mu / (1 - b1^n)) / (sqrt(nu / (1 - b2^n)) + epsilon)

    Args:
      b1: 0 <= b1 < 1.
      b2: 0 <= b2 < 1.
      epsilon: added outside the root.

    Reference: Kingma & Ba (2015), Adam: a method for stochastic optimization, algorithm 1.
    """
    checks.check_between("b1", b1, 0.0, 1.0)
    checks.check_between("b2", b2, 0.0, 1.0)

    def init(parameters: Nest) -> AdamState:
        mu, nu = (
            tf.nest.map_structure(lambda p: tf.zeros_like(widened(p)), parameters) for _ in range(2)
        )
        return AdamState(tf.zeros([], tf.int64), mu, nu)

    def update(
        updates: Nest, state: AdamState, parameters: Nest, step: tf.Tensor
    ) -> tuple[Nest, AdamState]:
        del parameters, step
        count = state.count + 1
        gradients = tf.nest.map_structure(bounded, updates)
        mu = tf.nest.map_structure(lambda m, g: b1 * m + (1.0 - b1) * g, state.mu, gradients)
        nu = tf.nest.map_structure(lambda v, g: b2 * v + (1.0 - b2) * g * g, state.nu, gradients)
        n = tf.cast(count, tf.float32)
        mu_scale = 1.0 / (1.0 - tf.pow(b1, n))
        nu_scale = 1.0 / (1.0 - tf.pow(b2, n))

        def direction(m: tf.Tensor, v: tf.Tensor, u: tf.Tensor) -> tf.Tensor:
            m, v = m * tf.cast(mu_scale, m.dtype), v * tf.cast(nu_scale, v.dtype)
            return tf.cast(m / (tf.sqrt(v) + epsilon), u.dtype)

        return tf.nest.map_structure(direction, mu, nu, updates), AdamState(count, mu, nu)

    description = {"name": "scale_by_adam", "b1": b1, "b2": b2, "epsilon": epsilon}
    return GradientTransform(init, update, description)


def add_weight_decay(rate: float) -> GradientTransform:
    """Adds decoupled weight decay, `u <- u + rate * p`, for matrices; vectors are left alone.

    Args:
      rate: the factor of the parameters, >= 0.
    """
    checks.check_at_least("weight decay", rate, 0.0)

    def decay(updates: Nest, parameters: Nest, step: tf.Tensor) -> Nest:
        del step
        return tf.nest.map_structure(
            lambda u, p: u + rate * p if len(p.shape) > 1 else u, updates, parameters
        )

    return stateless(decay, {"name": "add_weight_decay", "rate": rate})


def adam(
    learning_rate: float | Schedule,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    epsilon: float = 1e-8,
) -> GradientTransform:
    """Makes the Adam optimizer: `scale_by_adam`, then the learning rate.

    Example: the first step has the size of the learning rate.
      >>> optimizer = adam(0.1)
      >>> p = [tf.constant([1.0, 1.0])]
      >>> g = [tf.constant([5.0, -0.01])]
      >>> updates, _ = optimizer.update(g, optimizer.init(p), p, tf.zeros([], tf.int64))
      >>> updates[0].numpy().astype(float).round(3).tolist()
      [-0.1, 0.1]
    """
    return chain(scale_by_adam(b1, b2, epsilon), scale_by_learning_rate(learning_rate))


def adamw(
    learning_rate: float | Schedule,
    *,
    weight_decay: float,
    b1: float = 0.9,
    b2: float = 0.999,
    epsilon: float = 1e-8,
) -> GradientTransform:
    """Makes the AdamW optimizer: Adam, minus `rate * weight_decay * p` for every matrix.

    Reference: Loshchilov & Hutter (2019), Decoupled weight decay regularization.
    """
    return chain(
        scale_by_adam(b1, b2, epsilon),
        add_weight_decay(weight_decay),
        scale_by_learning_rate(learning_rate),
    )
