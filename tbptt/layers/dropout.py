"""Dropout with stateless seeds: the same seed drops the same units, compiled or not."""

import tensorflow as tf

from tbptt import checks
from tbptt.types import Seed

PER = ("step", "window")


def check_dropout(rate: float, per: str) -> None:
    """Raises ValueError unless `dropout` takes these."""
    checks.check_between("dropout rate", rate, 0.0, 1.0)
    checks.check_choice("per", per, PER)


def dropout(inputs: tf.Tensor, rate: float, seed: Seed | None, *, per: str = "step") -> tf.Tensor:
    """Sets units to zero with probability `rate` and scales the rest by 1 / (1 - rate).

    Args:
      inputs: `[T, B, D]`.
      rate: probability of dropping, 0 <= rate < 1; 0 costs nothing.
      seed: int32 `[2]`; None only where rate is 0.
      per: `step`: every step has a mask of its own (Zaremba et al.); `window`: one mask
        for all steps of a window (Gal & Ghahramani's variational dropout).

    Reference: Zaremba, Sutskever & Vinyals (2014), Recurrent neural network
      regularization. Gal & Ghahramani (2016), A theoretically grounded application of
      dropout in recurrent neural networks.
    """
    check_dropout(rate, per)
    if rate == 0.0:
        return inputs
    if seed is None:
        raise ValueError(f"dropout at rate {rate} needs a seed. Pass seed=, or rate 0.")
    steps, rows, size = inputs.shape
    shape = [1 if per == "window" else steps, rows, size]
    # Bits and not floats: TensorFlow and XLA draw the same bits and make other floats of them.
    bits = tf.random.stateless_uniform(
        shape, seed, minval=None, maxval=None, dtype=tf.uint32, alg="philox"
    )
    keep = bits >= tf.constant(round(rate * 2**32), tf.uint32)
    return tf.where(keep, inputs / (1.0 - rate), tf.zeros([], inputs.dtype))
