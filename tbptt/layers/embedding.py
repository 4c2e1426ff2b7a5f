"""A vector for every id."""

import tensorflow as tf

from tbptt.layers.initializers import Initializer, uniform
from tbptt.types import Seed


class Embedding(tf.Module):
    """Looks ids up in a table.

    Attributes:
      table: `[vocabulary_size, embedding_size]`.
    """

    def __init__(
        self,
        vocabulary_size: int,
        embedding_size: int,
        *,
        seed: Seed,
        initializer: Initializer | None = None,
        dtype: tf.DType = tf.float32,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        initializer = initializer or uniform(0.1)
        self.table = tf.Variable(
            initializer([vocabulary_size, embedding_size], seed, dtype), name="table"
        )

    def __call__(self, ids: tf.Tensor) -> tf.Tensor:
        """`[...] ids -> [..., embedding_size]`. Ids must be in range: see `streams`."""
        return tf.gather(self.table, ids)
