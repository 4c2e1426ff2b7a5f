"""`Embedding`: a table with one trainable vector for every token id."""

import tensorflow as tf

from tbptt.layers.initializers import Initializer, uniform
from tbptt.rebuild import rebuildable
from tbptt.types import Seed


@rebuildable
class Embedding(tf.Module):
    """Looks up token ids in a trainable table.

    Attributes:
      table: `[vocabulary_size, embedding_size]`; give it to a readout for weight tying.
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
        """Maps ids `[...]` to their vectors `[..., embedding_size]`; ids must be in range."""
        return tf.gather(self.table, ids)
