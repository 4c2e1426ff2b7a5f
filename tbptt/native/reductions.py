"""Sums by the native kernels."""

from collections.abc import Callable

import tensorflow as tf

from tbptt.native.calls import call
from tbptt.native.choice import resolve

LEAST = 1 << 16  # numbers, from which the kernel is faster than XLA, which writes the squares first


def sum_of_squares(x: tf.Tensor) -> tf.Tensor:
    """Returns the sum of the squares of a float tensor, in its type.

    Example:
      >>> float(sum_of_squares(tf.constant([3.0, 4.0])))
      25.0
    """
    size = x.shape.num_elements()
    if size is None or size < LEAST or resolve("auto", x.dtype, None) != "native":
        return tf.reduce_sum(x * x)

    @tf.custom_gradient
    def summed(x: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        (result,) = call("tbptt_sum_of_squares", [x], [([], tf.float32)])
        return result, lambda d: 2.0 * d * x

    return summed(x)
