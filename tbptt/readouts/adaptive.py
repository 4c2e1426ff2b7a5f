"""`AdaptiveSoftmax`: frequent ids at full width, rare ids in narrower clusters."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tbptt.layers.dense import linear
from tbptt.layers.initializers import Initializer, glorot_uniform
from tbptt.readouts.chunked import ChunkedSoftmax, check_sizes, flat, softmax_loss, wide
from tbptt.rebuild import rebuildable
from tbptt.seeds import split_seed
from tbptt.types import Seed


@rebuildable
class AdaptiveSoftmax(tf.Module):
    """Computes an exact distribution over ids sorted by frequency, id 0 being the most frequent.

        p(v) = head(v)                                       for v < cutoffs[0]
        p(v) = head(cluster i) * tail_i(v),                  for cutoffs[i] <= v < cutoffs[i+1]
        tail_i = softmax((hidden @ down_i) @ w_i^T + b_i),   down_i: H -> H / factor^(i+1)

    A tail scores only the positions whose target is in it: they are sorted to the front, and
    the loop ends after the last of them. So the cost of a window depends on its targets, though
    every shape is static. Ids in another order give a valid distribution too, but at a higher cost
    and a higher loss.

    Attributes:
      head: the first ids and then one entry a tail, `w [cutoffs[0] + tails, H]` and `b`.
      down: a projection for each tail, `[H, h_i]`, without bias.
      tails: a readout for each tail, `w [members, h_i]` and `b`.

    Example:
      >>> readout = AdaptiveSoftmax(8, 100, cutoffs=[10, 40], seed=make_seed(0))
      >>> hidden, targets = tf.ones([5, 2, 8]), tf.fill([5, 2], 99)
      >>> [tuple(tail.w.shape) for tail in readout.tails], readout.loss(hidden, targets).shape
      ([(30, 2), (60, 1)], TensorShape([5, 2]))

    Reference: Grave et al. (2017), Efficient softmax approximation for GPUs.
    """

    def __init__(
        self,
        hidden_size: int,
        vocabulary_size: int,
        *,
        cutoffs: Sequence[int],
        seed: Seed,
        factor: float = 4.0,
        chunk: int = 2048,
        initializer: Initializer | None = None,
        dtype: tf.DType = tf.float32,
        name: str | None = None,
    ) -> None:
        """Creates the parameters of head and tails.

        Args:
          hidden_size: H.
          vocabulary_size: V.
          cutoffs: the first id of each tail, increasing, in (0, V).
          seed: int32 `[2]`, the seed of the initial weights.
          factor: each tail is narrower than the cluster before it by this factor, at least 1.
          chunk: the number of ids scored at a time.
          initializer: the initializer of all weights but the biases. None: Glorot's.
          dtype: the type of the parameters.
          name: the name of the module.
        """
        super().__init__(name=name)
        check_sizes(hidden_size, vocabulary_size, chunk)
        edges = [0, *cutoffs, vocabulary_size]
        if len(edges) < 3 or any(a >= b for a, b in itertools.pairwise(edges)):
            raise ValueError(
                f"cutoffs ({list(cutoffs)}) must be increasing, above 0 and below "
                f"vocabulary_size ({vocabulary_size}), because each begins a tail. Use the ids "
                "below which most of the text lies, as a tenth and a half of the vocabulary."
            )
        if not factor >= 1:
            raise ValueError(f"factor ({factor}) must be at least 1: 4 narrows each tail by 4.")
        self.hidden_size, self.vocabulary_size = hidden_size, vocabulary_size
        self._chunk = chunk
        self._edges = tuple(edges[1:])
        count = len(cutoffs)
        sizes = [max(1, int(hidden_size // factor ** (i + 1))) for i in range(count)]
        first, *seeds = split_seed(seed, 1 + 2 * count)
        initializer = initializer or glorot_uniform()
        common: dict[str, Any] = dict(chunk=chunk, initializer=initializer, dtype=dtype)
        self.head = ChunkedSoftmax(hidden_size, edges[1] + count, seed=first, **common)
        self.down = [
            tf.Variable(initializer([hidden_size, size], seeds[2 * i], dtype), name="down")
            for i, size in enumerate(sizes)
        ]
        self.tails = [
            ChunkedSoftmax(size, edges[i + 2] - edges[i + 1], seed=seeds[2 * i + 1], **common)
            for i, size in enumerate(sizes)
        ]

    def logits(self, hidden: tf.Tensor) -> tf.Tensor:
        """Computes log probabilities `[..., V]` of all ids after `hidden [..., H]`."""
        first = self._edges[0]
        head = _log_probabilities(self.head, hidden)
        parts = [head[..., :first]]
        for i, (down, tail) in enumerate(zip(self.down, self.tails, strict=True)):
            inside = _log_probabilities(tail, linear(hidden, down))
            parts.append(head[..., first + i, None] + inside)
        return tf.concat(parts, axis=-1)

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
        h, t = flat(hidden, targets)
        in_head, tail_losses = t, []
        for i, (down, tail) in enumerate(zip(self.down, self.tails, strict=True)):
            low, high = self._edges[i : i + 2]
            member = (t >= low) & (t < high)
            in_head = tf.where(member, self._edges[0] + i, in_head)
            order = tf.argsort(tf.cast(~member, tf.int32), stable=True)  # members first
            back = tf.argsort(order)
            loss = softmax_loss(
                _permute(linear(h, down), order, back),
                tail.w,
                tail.b,
                tf.clip_by_value(tf.gather(t, order) - low, 0, high - low - 1),
                chunk=self._chunk,
                count=tf.reduce_sum(tf.cast(member, tf.int32)),
            )
            tail_losses.append(_permute(loss, back, order))
        return tf.reshape(tf.add_n([self.head.loss(h, in_head), *tail_losses]), targets.shape)


def _log_probabilities(cluster: ChunkedSoftmax, hidden: tf.Tensor) -> tf.Tensor:
    logits = cluster.logits(hidden)
    return tf.nn.log_softmax(tf.cast(logits, wide(logits.dtype)))


def _permute(x: tf.Tensor, order: tf.Tensor, back: tf.Tensor) -> tf.Tensor:
    """Permutes rows, `x[order]`, with the gradient `d[back]`, a gather instead of a scatter."""

    @tf.custom_gradient
    def run(x: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        return tf.gather(x, order), lambda d: tf.gather(d, back)

    return run(x)
