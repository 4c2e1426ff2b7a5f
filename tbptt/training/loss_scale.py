"""Dynamic loss scaling for mixed precision: keeps small float16 gradients from becoming zero.

Reference: Micikevicius et al. (2018), Mixed precision training, section 3.2.
"""

import math

import tensorflow as tf

from tbptt import checks

LEAST, LARGEST = 1.0, 2.0**126  # the reciprocal of the largest is still a normal float32


class LossScale(tf.Module):
    """A factor on the loss that is halved when gradients overflow and doubled after good windows.

        scale <- scale / 2, not below 1         after a window that is not finite
        scale <- 2 * scale, not above 2**126    after `growth_interval` good windows in a row

    The gradients are divided by the factor before clipping or anything else. It stays a power of
    two, so that multiplying and dividing by it is exact unless a value over- or underflows.

    Attributes:
      scale: float32 variable.
      good_steps: int64 variable, finite windows in a row since the scale last changed.

    Example:
      >>> loss_scale = LossScale(8.0, growth_interval=2)
      >>> for finite in (True, True, False, True):
      ...     loss_scale.update(tf.constant(finite))
      ...     print(float(loss_scale.scale), int(loss_scale.good_steps))
      8.0 1
      16.0 0
      8.0 0
      8.0 1
    """

    def __init__(
        self, initial: float = 2.0**15, *, growth_interval: int = 2000, name: str = "loss_scale"
    ) -> None:
        """Creates the variables of the scale.

        Args:
          initial: first value, a power of two from 1 to 2**126.
          growth_interval: the scale doubles after this many finite windows in a row.
          name: the name of the module.

        Raises:
          ValueError: a value is out of its range.
        """
        super().__init__(name=name)
        checks.check_at_least("growth_interval", growth_interval, 1)
        if not (LEAST <= initial <= LARGEST and math.frexp(initial)[0] == 0.5):
            raise ValueError(
                f"initial ({initial}) must be a power of two from 1 to 2**126, because then "
                "multiplying and dividing by it rounds nothing. Use 2.0**15."
            )
        self._growth_interval = growth_interval
        self.scale = tf.Variable(initial, dtype=tf.float32, trainable=False, name="scale")
        self.good_steps = tf.Variable(0, dtype=tf.int64, trainable=False, name="good_steps")

    def update(self, finite: tf.Tensor) -> None:
        """Assigns the scale of the next window.

        Args:
          finite: bool scalar, whether loss and gradients of this window were finite.
        """
        scale = tf.convert_to_tensor(self.scale)
        good = tf.where(finite, self.good_steps + 1, tf.zeros([], tf.int64))
        grow = good >= self._growth_interval
        grown = tf.where(grow, tf.minimum(2.0 * scale, LARGEST), scale)
        self.scale.assign(tf.where(finite, grown, tf.maximum(0.5 * scale, LEAST)))
        self.good_steps.assign(tf.where(grow, tf.zeros_like(good), good))


def divide(gradient: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    """Computes `gradient / scale` in the gradient's type, even if that type cannot hold the scale.

    Args:
      gradient: a tensor of any shape.
      scale: float32 scalar.

    Example: 2**16 is beyond float16.
      >>> float(divide(tf.constant(2.0**10, tf.float16), tf.constant(2.0**16)))
      0.015625
    """
    wide = gradient if gradient.dtype.size >= tf.float32.size else tf.cast(gradient, tf.float32)
    return tf.cast(wide / tf.cast(scale, wide.dtype), gradient.dtype)
