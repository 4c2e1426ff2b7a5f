"""Gradient clipping, by the global norm and by value."""

import numpy as np
import tensorflow as tf

from tbptt import native
from tbptt.optimizers.transform import GradientTransform, stateless, widened
from tbptt.types import Nest


def global_norm(nest: Nest) -> tf.Tensor:
    """Returns the joint L2 norm of all tensors, `sqrt(sum_i |u_i|^2)`.

    It is right for all finite values: if the squares leave the range of their type, they are
    computed again of all values times a power of two. NaN and infinity among the values give a
    norm that is not finite.

    Args:
      nest: floating tensors of any shapes.

    Returns:
      A scalar, float64 if a tensor is, else float32.

    Example: 3 and 4, and the same times 1e20, whose squares are beyond float32.
      >>> small = tf.constant([3.0, 4.0])
      >>> float(global_norm([small])), float(global_norm([small * 1e20]) / 1e20)
      (5.0, 5.0)
    """
    parts = _alike(nest)
    squares = tf.add_n(sums_of_squares(parts))
    dtype = squares.dtype
    # Below it, squares that were rounded to 0 could be more than a rounding error of the sum.
    least = tf.constant(1e14 * np.finfo(dtype.as_numpy_dtype).tiny, dtype)
    large, small = (2.0**-600, 2.0**600) if dtype == tf.float64 else (2.0**-80, 2.0**80)

    def scaled() -> tf.Tensor:
        factor = tf.where(squares <= least, tf.constant(small, dtype), tf.constant(large, dtype))
        return tf.sqrt(tf.add_n(sums_of_squares([part * factor for part in parts]))) / factor

    plain = tf.math.is_finite(squares) & (squares > least)
    return tf.cond(plain, lambda: tf.sqrt(squares), scaled)


def sums_of_squares(nest: Nest) -> list[tf.Tensor]:
    """Returns each tensor's sum of squares, in float64 if one of them is float64, else float32."""
    return [native.reductions.sum_of_squares(part) for part in _alike(nest)]


def _alike(nest: Nest) -> list[tf.Tensor]:
    parts = tf.nest.flatten(nest)
    dtype = tf.float64 if any(part.dtype == tf.float64 for part in parts) else tf.float32
    return [tf.cast(part, dtype) for part in parts]


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

        def scaled(u: tf.Tensor) -> tf.Tensor:
            wide = widened(u)
            return tf.cast(wide * tf.cast(scale, wide.dtype), u.dtype)

        return tf.nest.map_structure(scaled, updates)

    return stateless(clip, {"name": "clip_by_global_norm", "max_norm": max_norm})


def clip_by_value(max_value: float) -> GradientTransform:
    """Clips every element to `[-max_value, max_value]`.

    Args:
      max_value: the largest magnitude allowed, > 0.
    """
    if not max_value > 0:
        raise ValueError(f"max_value ({max_value}) must be above 0; leave clipping out instead.")

    def clip(updates: Nest, parameters: Nest, step: tf.Tensor) -> Nest:
        del parameters, step
        return tf.nest.map_structure(lambda u: tf.clip_by_value(u, -max_value, max_value), updates)

    return stateless(clip, {"name": "clip_by_value", "max_value": max_value})
