"""`SampledSoftmax`: trains on the target and a few ids that are drawn by rank."""

import numpy as np
import tensorflow as tf

from tbptt.layers.initializers import Initializer
from tbptt.readouts.chunked import ChunkedSoftmax, flat, wide
from tbptt.rebuild import rebuildable
from tbptt.types import Seed


@rebuildable
class SampledSoftmax(tf.Module):
    """Estimates the softmax from S drawn ids in training, and computes it exactly in evaluation.

        q(v) = log((v + 2) / (v + 1)) / log(V + 1)
        z    = exp(l_target) + sum_{s of S ids, s != target} exp(l_s) / (S q(s))
        loss = log(z) - l_target,   l = hidden @ w^T + b

    E[z] is the softmax's own sum, and so the loss, a little low on average, converges to the exact
    one as S grows. The ids are drawn with replacement and shared by the window. Ids must be
    sorted by frequency, id 0 being the most frequent: q is Zipf's law. In another order z is
    unbiased too, but too noisy to be useful.

    Attributes:
      exact: the `ChunkedSoftmax` that is estimated, with `w [V, H]` and `b [V]`.

    Example:
      >>> readout = SampledSoftmax(3, 1000, samples=20, seed=make_seed(0))
      >>> hidden, targets = tf.ones([5, 2, 3]), tf.zeros([5, 2], tf.int32)
      >>> readout.loss(hidden, targets, training=True, seed=make_seed(1)).shape.as_list()
      [5, 2]

    Reference: Jean et al. (2015), On using very large target vocabulary for neural machine
      translation; that the target's own term is not reweighted, and z unbiased so, is Bengio &
      Senecal (2008), Adaptive importance sampling to accelerate training of a neural
      probabilistic language model.
    """

    def __init__(
        self,
        hidden_size: int,
        vocabulary_size: int,
        *,
        samples: int,
        seed: Seed,
        chunk: int = 2048,
        initializer: Initializer | None = None,
        dtype: tf.DType = tf.float32,
        name: str | None = None,
    ) -> None:
        """Creates the readout's parameters.

        Args:
          hidden_size: H.
          vocabulary_size: V.
          samples: S, the number of ids drawn a window, at most V.
          seed: int32 `[2]`, the seed of the initial weights.
          chunk: the number of ids scored at a time by the exact loss.
          initializer: the initializer of `w`. None: Glorot's.
          dtype: the type of the parameters.
          name: the name of the module.
        """
        super().__init__(name=name)
        self.exact = ChunkedSoftmax(
            hidden_size,
            vocabulary_size,
            seed=seed,
            chunk=chunk,
            initializer=initializer,
            dtype=dtype,
        )
        if not 1 <= samples <= vocabulary_size:
            raise ValueError(
                f"samples ({samples}) must be at least 1 and at most vocabulary_size "
                f"({vocabulary_size}): with more, the exact softmax costs less. Use fewer, or "
                "ChunkedSoftmax."
            )
        self.hidden_size, self.vocabulary_size = hidden_size, vocabulary_size
        self._samples = samples
        edges = log_uniform_edges(vocabulary_size)
        self._edges = tf.constant(edges)
        expected = samples * np.diff(edges, prepend=0) / 2.0**32
        self._log_expected = tf.constant(
            np.log(expected), dtype
        )  # expected number of draws of an id

    def logits(self, hidden: tf.Tensor) -> tf.Tensor:
        """Computes exact logits `[..., V]` from `hidden [..., H]`."""
        return self.exact.logits(hidden)

    def loss(
        self,
        hidden: tf.Tensor,
        targets: tf.Tensor,
        *,
        training: bool = False,
        seed: Seed | None = None,
    ) -> tf.Tensor:
        """Computes the negative log probability of `targets [T, B]` after `hidden [T, B, H]`.

        In training it is an estimate, from the ids that `seed` draws.
        """
        if not training:
            return self.exact.loss(hidden, targets)
        if seed is None:
            raise ValueError(
                "SampledSoftmax draws ids in training and needs a seed for that. Pass seed=, or "
                "training=False for the exact loss."
            )
        h, t = flat(hidden, targets)
        w, b, drawn = self.exact.w, self.exact.b, self.draw(seed)
        target = tf.reduce_sum(h * tf.gather(w, t), axis=-1) + tf.gather(b, t)
        others = tf.matmul(h, tf.gather(w, drawn), transpose_b=True)
        others += tf.gather(b, drawn) - tf.gather(self._log_expected, drawn)
        hit = tf.equal(drawn, t[:, None])
        others = tf.where(hit, tf.cast(-np.inf, others.dtype), others)
        logits = tf.concat([target[:, None], others], axis=1)  # [N, 1 + S]
        logits = tf.cast(logits, wide(logits.dtype))
        loss = tf.reduce_logsumexp(logits, axis=1) - logits[:, 0]
        return tf.reshape(loss, targets.shape)

    def draw(self, seed: Seed) -> tf.Tensor:
        """Draws `[samples]` independent ids, each id v with probability q(v)."""
        # Bits and integers: with floats, TensorFlow and XLA would draw different ids.
        bits = tf.random.stateless_uniform(
            [self._samples], seed, minval=None, maxval=None, dtype=tf.uint32, alg="philox"
        )
        bits = tf.cast(bits, tf.int64)
        last = self.vocabulary_size - 1
        ids = tf.zeros([self._samples], tf.int32)  # grows to the number of edges <= bits
        for power in reversed(range(last.bit_length())):
            edge = tf.gather(self._edges, tf.minimum(ids + (1 << power) - 1, last))
            ids += tf.where(edge <= bits, 1 << power, 0)
        return ids


def log_uniform_edges(vocabulary_size: int) -> np.ndarray:
    """Divides 2^32 equally likely numbers among ids by q; returns each id's end, `[V]` int64."""
    ids = np.arange(vocabulary_size)
    share = np.log(ids + 2.0) / np.log(vocabulary_size + 1.0)
    return np.rint(share * 2.0**32).astype(np.int64)
