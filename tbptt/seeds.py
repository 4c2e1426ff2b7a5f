"""Keys of stateless random number generators: randomness is a function of them, never a state."""

import tensorflow as tf

from tbptt.types import Seed


def make_seed(seed: int) -> Seed:
    """An int32 `[2]` key from one integer.

    Example:
      >>> make_seed(7).numpy().tolist()
      [0, 7]
    """
    return tf.constant([0, seed], tf.int32)


def split_seed(seed: Seed, count: int) -> list[Seed]:
    """`count` independent keys, the same ones compiled or not."""
    return tf.unstack(tf.random.split(seed, count, alg="philox"))


def fold_in(seed: Seed, number: tf.Tensor) -> Seed:
    """A key for this seed and this number: of a step, say."""
    return tf.random.fold_in(seed, number, alg="philox")
