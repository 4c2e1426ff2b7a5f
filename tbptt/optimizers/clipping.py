"""Bounds on gradients."""

import tensorflow as tf

from tbptt.optimizers.transform import GradientTransform, stateless
from tbptt.types import Nest


def global_norm(nest: Nest) -> tf.Tensor:
    """Joint L2 norm of all tensors, `sqrt(sum_i |u_i|^2)`, a float32 scalar."""
    squares = [tf.cast(tf.reduce_sum(u * u), tf.float32) for u in tf.nest.flatten(nest)]
    return tf.sqrt(tf.add_n(squares))


def clip_by_global_norm(max_norm: float) -> GradientTransform:
    """Scales all updates together so that their joint L2 norm is at most `max_norm`.

        n = sqrt(sum_i |u_i|^2),   u_i <- u_i * min(1, max_norm / n)

    Args:
      max_norm: the largest norm allowed, > 0.

    Reference: Pascanu, Mikolov & Bengio (2013), On the difficulty of training recurrent
      neural networks.
    """
    if not max_norm > 0:
        raise ValueError(f"max_norm ({max_norm}) must be above 0; leave clipping out instead.")

    def clip(updates: Nest, parameters: Nest, step: tf.Tensor) -> Nest:
        del parameters, step
        scale = max_norm / tf.maximum(global_norm(updates), max_norm)
        return tf.nest.map_structure(lambda u: u * tf.cast(scale, u.dtype), updates)

    return stateless(clip, {"name": "clip_by_global_norm", "max_norm": max_norm})


def clip_by_value(max_value: float) -> GradientTransform:
    """`u <- min(max(u, -max_value), max_value)`, element by element.

    Args:
      max_value: the largest magnitude allowed, > 0.
    """
    if not max_value > 0:
        raise ValueError(f"max_value ({max_value}) must be above 0; leave clipping out instead.")

    def clip(updates: Nest, parameters: Nest, step: tf.Tensor) -> Nest:
        del parameters, step
        return tf.nest.map_structure(lambda u: tf.clip_by_value(u, -max_value, max_value), updates)

    return stateless(clip, {"name": "clip_by_value", "max_value": max_value})
