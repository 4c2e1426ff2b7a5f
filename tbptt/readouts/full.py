"""`FullSoftmax`: the softmax over a whole vocabulary in one product, with weight tying or not."""

import tensorflow as tf

from tbptt import checks
from tbptt.layers.dense import linear
from tbptt.layers.initializers import Initializer, glorot_uniform
from tbptt.losses import cross_entropy
from tbptt.rebuild import rebuildable
from tbptt.types import Seed


@rebuildable
class FullSoftmax(tf.Module):
    """Computes all logits at once; the choice for vocabularies of up to some thousand ids.

        logits = hidden @ w + b,   loss = -log softmax(logits)[target]

    Attributes:
      w: `[H, V]`, unless a table was given.
      b: `[V]`, initially zero.

    Example:
      >>> readout = FullSoftmax(3, 10, seed=make_seed(0))
      >>> hidden, targets = tf.ones([5, 2, 3]), tf.zeros([5, 2], tf.int32)
      >>> readout.loss(hidden, targets).shape.as_list(), readout.logits(hidden).shape.as_list()
      ([5, 2], [5, 2, 10])

    Reference: Press & Wolf (2017), Using the output embedding to improve language models: tied.
    """

    def __init__(
        self,
        hidden_size: int,
        vocabulary_size: int,
        *,
        seed: Seed,
        table: tf.Variable | None = None,
        initializer: Initializer | None = None,
        compute_dtype: tf.DType | None = None,
        dtype: tf.DType = tf.float32,
        name: str | None = None,
    ) -> None:
        """Creates the readout's parameters.

        Args:
          hidden_size: H.
          vocabulary_size: V.
          seed: int32 `[2]`, the seed of the initial weights.
          table: `[V, H]` variable whose transpose is used as `w`, an embedding's table, for weight
            tying.
          initializer: the initializer of `w`. None: Glorot's.
          compute_dtype: the type of the product, see `precision.product`. None: `dtype`.
          dtype: the type of the parameters and the logits.
          name: the name of the module.
        """
        super().__init__(name=name)
        checks.check_at_least("hidden_size", hidden_size, 1)
        checks.check_at_least("vocabulary_size", vocabulary_size, 1)
        self.hidden_size, self.vocabulary_size = hidden_size, vocabulary_size
        self._compute_dtype = checks.check_compute_dtype(compute_dtype, dtype)
        if table is None:
            initializer = initializer or glorot_uniform()
            self.w = tf.Variable(initializer([hidden_size, vocabulary_size], seed, dtype), name="w")
        else:
            checks.check_shape("table", table, [vocabulary_size, hidden_size])
            checks.check_dtype("table", table, dtype)
        self._table = lambda: table  # no attribute: a parameter has one owner, and one name
        self.b = tf.Variable(tf.zeros([vocabulary_size], dtype), name="b")

    @property
    def table(self) -> tf.Variable | None:
        """The embedding's table that was given (weight tying), or None."""
        return self._table()

    def logits(self, hidden: tf.Tensor) -> tf.Tensor:
        """Computes logits `[..., V]` from `hidden [..., H]`."""
        w = self.w if self.table is None else tf.transpose(self.table)
        return linear(hidden, w, self._compute_dtype) + self.b

    def loss(
        self,
        hidden: tf.Tensor,
        targets: tf.Tensor,
        *,
        training: bool = False,
        seed: Seed | None = None,
    ) -> tf.Tensor:
        """Computes the negative log probability of `targets [T, B]` after `hidden [T, B, H]`."""
        del training, seed  # the same in both, and nothing here is random
        return cross_entropy(self.logits(hidden), targets)
