"""Seeds: keys of stateless random number generators, so that randomness has no hidden state."""

import tensorflow as tf

from tbptt.types import Seed


def make_seed(seed: int) -> Seed:
    """Makes an int32 `[2]` key of one integer.

    Example:
      >>> make_seed(7).numpy().tolist()
      [0, 7]
    """
    return tf.constant([0, seed], tf.int32)


def split_seed(seed: Seed, count: int) -> list[Seed]:
    """Splits a key into `count` independent keys, the same ones compiled by XLA or not."""
    return tf.unstack(tf.random.split(seed, count, alg="philox"))


def fold_in(seed: Seed, number: tf.Tensor) -> Seed:
    """Derives a key from a key and a number, as that of a step."""
    return tf.random.fold_in(seed, number, alg="philox")
