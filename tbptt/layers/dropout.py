"""Dropout with stateless seeds: the same seed drops the same units, compiled by XLA or not."""

from collections.abc import Sequence

import tensorflow as tf

from tbptt import checks
from tbptt.types import Seed

PER = ("step", "window")


def check_dropout(rate: float, per: str) -> None:
    """Raises ValueError unless `rate` and `per` are valid arguments of `dropout`."""
    checks.check_between("dropout rate", rate, 0.0, 1.0)
    checks.check_choice("per", per, PER)


def dropout(inputs: tf.Tensor, rate: float, seed: Seed | None, *, per: str = "step") -> tf.Tensor:
    """Sets units to zero with probability `rate` and scales the others by 1 / (1 - rate).

    Args:
      inputs: `[T, B, D]`.
      rate: probability of dropping, 0 <= rate < 1; 0 costs nothing.
      seed: int32 `[2]`; may be None only if `rate` is 0.
      per: `step`: every step has a mask of its own (Zaremba et al.); `window`: one mask
        for all steps of a window (Gal & Ghahramani's variational dropout).

    Reference: Zaremba, Sutskever & Vinyals (2014), Recurrent neural network
      regularization. Gal & Ghahramani (2016), A theoretically grounded application of
      dropout in recurrent neural networks.
    """
    check_dropout(rate, per)
    if rate == 0.0:
        return inputs
    steps, rows, size = inputs.shape
    keep = keep_mask([1 if per == "window" else steps, rows, size], rate, seed)
    return tf.where(keep, inputs / (1.0 - rate), tf.zeros([], inputs.dtype))


def keep_mask(shape: Sequence[int], rate: float, seed: Seed | None) -> tf.Tensor:
    """Draws bools that are false with probability `rate`, the same compiled by XLA or not."""
    if seed is None:
        raise ValueError(f"dropout at rate {rate} needs a seed. Pass seed=, or rate 0.")
    # Bits and not floats: TensorFlow and XLA draw the same bits, but make different floats of them.
    bits = tf.random.stateless_uniform(
        shape, seed, minval=None, maxval=None, dtype=tf.uint32, alg="philox"
    )
    return bits >= tf.constant(round(rate * 2**32), tf.uint32)


def drop(values: tf.Tensor, rate: float, seed: Seed | None) -> tf.Tensor:
    """Sets `values`, of any shape, to zero with probability `rate` and scales the others."""
    keep = keep_mask(values.shape, rate, seed)
    return tf.where(keep, values / (1.0 - rate), tf.zeros([], values.dtype))
