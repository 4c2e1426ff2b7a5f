"""`ChunkedSoftmax`: the exact softmax over a large vocabulary, a chunk of ids at a time."""

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from tbptt import checks
from tbptt.layers.dense import linear
from tbptt.layers.initializers import Initializer, glorot_uniform
from tbptt.rebuild import rebuildable
from tbptt.types import Seed

Parts = tuple[tf.Tensor, ...]

POSITIONS = 32  # rows in one iteration of `softmax_loss` with a count


def softmax_loss(
    hidden: tf.Tensor,
    w: tf.Tensor,
    b: tf.Tensor,
    targets: tf.Tensor,
    *,
    chunk: int,
    count: tf.Tensor | None = None,
) -> tf.Tensor:
    """Computes the cross entropy of logits `hidden @ w^T + b` without storing all of them.

        norm_n = log(sum_v exp(logits_nv)),   loss_n = norm_n - logits_n,targets_n

    The forward loop over chunks of the vocabulary keeps only `norm`; the backward loop recomputes
    each chunk's logits. That is a fourth product beside three, but nothing of the size `[N, V]` is
    written to memory.

    Args:
      hidden: `[N, H]`, N static.
      w: `[V, H]`, one row for each id, as in an embedding's table, so that a chunk's gradient is a
        slice of the whole gradient and is written once.
      b: `[V]`.
      targets: `[N]` ids in `[0, V)`.
      chunk: the number of ids at a time; a little fewer if that divides V and `chunk` does not.
      count: int scalar: only the first `count` rows are computed, `POSITIONS` at a time, so
        that fewer cost less. The others get loss 0 and gradient 0. None: all rows.

    Returns:
      `[N]`, at least float32. A NaN in a row whose loss gets no gradient does not reach the
      gradients of other rows.

    Reference: Wijmans et al. (2025), Cut your losses in large-vocabulary language models.
    """
    w, b = tf.convert_to_tensor(w), tf.convert_to_tensor(b)
    rows = hidden.shape[0]
    turns = -(-rows // POSITIONS)
    trips = None if count is None else (count + POSITIONS - 1) // POSITIONS

    def cut(x: tf.Tensor) -> tf.Tensor:
        """Cuts `[N, ...]` into `[turns, POSITIONS, ...]`, the last part padded with zeros."""
        x = tf.pad(x, [[0, turns * POSITIONS - rows]] + [[0, 0]] * (x.shape.rank - 1))
        return tf.reshape(x, [turns, POSITIONS, *x.shape[1:]])

    def whole(x: tf.Tensor) -> tf.Tensor:
        return tf.reshape(x, [turns * POSITIONS, *x.shape[2:]])[:rows]

    @tf.custom_gradient
    def run(hidden: tf.Tensor, w: tf.Tensor, b: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        if trips is None:
            loss, norm = _forward(hidden, w, b, targets, chunk)
            return loss, lambda d_loss: _backward(hidden, w, b, targets, chunk, norm, d_loss)
        h, t = cut(hidden), cut(targets)

        def forward(k: tf.Tensor, carried: Parts) -> tuple[Parts, Parts]:
            return carried, _forward(tf.gather(h, k), w, b, tf.gather(t, k), chunk)

        kept = [((POSITIONS,), wide(hidden.dtype))] * 2
        _, (loss, norm) = _loop(forward, trips, turns, (), kept)

        def gradient(d_loss: tf.Tensor) -> Parts:
            d = cut(d_loss)

            def backward(k: tf.Tensor, carried: Parts) -> tuple[Parts, Parts]:
                parts = (tf.gather(x, k) for x in (h, t, norm, d))
                h_k, t_k, norm_k, d_k = parts
                d_hidden, d_w, d_b = _backward(h_k, w, b, t_k, chunk, norm_k, d_k)
                return (carried[0] + d_w, carried[1] + d_b), (d_hidden,)

            carried = (tf.zeros_like(w), tf.zeros_like(b))
            kept = [((POSITIONS, h.shape[-1]), h.dtype)]
            (d_w, d_b), (d_hidden,) = _loop(backward, trips, turns, carried, kept)
            return whole(d_hidden), d_w, d_b

        return whole(loss), gradient

    loss = run(hidden, w, b)
    if count is None:
        return loss
    return tf.where(tf.range(rows) < tf.cast(count, tf.int32), loss, tf.zeros_like(loss))


@rebuildable
class ChunkedSoftmax(tf.Module):
    """Computes the exact softmax a chunk of ids at a time, in the memory of one chunk.

        logits = hidden @ w^T + b,   loss = -log softmax(logits)[target]

    Attributes:
      w: `[V, H]`, unless a table was given.
      b: `[V]`, initially zero.

    Example:
      >>> readout = ChunkedSoftmax(3, 1000, seed=make_seed(0), chunk=100)
      >>> hidden, targets = tf.ones([5, 2, 3]), tf.zeros([5, 2], tf.int32)
      >>> readout.loss(hidden, targets).shape.as_list(), readout.logits(hidden).shape.as_list()
      ([5, 2], [5, 2, 1000])

    Reference: Wijmans et al. (2025), Cut your losses in large-vocabulary language models.
    """

    def __init__(
        self,
        hidden_size: int,
        vocabulary_size: int,
        *,
        seed: Seed,
        chunk: int = 2048,
        table: tf.Variable | None = None,
        initializer: Initializer | None = None,
        dtype: tf.DType = tf.float32,
        name: str | None = None,
    ) -> None:
        """Creates the readout's parameters.

        Args:
          hidden_size: H.
          vocabulary_size: V.
          seed: int32 `[2]`, the seed of the initial weights.
          chunk: the number of ids scored at a time: `T * B * chunk` numbers are in memory at once.
          table: `[V, H]` variable to use as `w`, an embedding's table, for weight tying.
          initializer: the initializer of `w`. None: Glorot's.
          dtype: the type of the parameters.
          name: the name of the module.
        """
        super().__init__(name=name)
        check_sizes(hidden_size, vocabulary_size, chunk)
        self.hidden_size, self.vocabulary_size = hidden_size, vocabulary_size
        self._chunk = chunk
        if table is None:
            initializer = initializer or glorot_uniform()
            first = initializer([hidden_size, vocabulary_size], seed, dtype)  # as Dense's
            table = self.w = tf.Variable(tf.transpose(first), name="w")
        else:
            checks.check_shape("table", table, [vocabulary_size, hidden_size])
            checks.check_dtype("table", table, dtype)
        self._table = lambda: table  # no attribute: a parameter has one owner, and one name
        self.b = tf.Variable(tf.zeros([vocabulary_size], dtype), name="b")

    @property
    def table(self) -> tf.Variable:
        """The weight matrix: `w`, or the embedding's table that was given (weight tying)."""
        return self._table()

    def logits(self, hidden: tf.Tensor) -> tf.Tensor:
        """Computes logits `[..., V]` from `hidden [..., H]`."""
        return linear(hidden, tf.transpose(self.table)) + self.b

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
        return tf.reshape(softmax_loss(h, self.table, self.b, t, chunk=self._chunk), targets.shape)


def check_sizes(hidden_size: int, vocabulary_size: int, chunk: int) -> None:
    """Raises ValueError unless the sizes of a readout are valid."""
    checks.check_at_least("hidden_size", hidden_size, 1)
    checks.check_at_least("vocabulary_size", vocabulary_size, 1)
    if chunk < 1:
        raise ValueError(
            f"chunk ({chunk}) must be at least 1: it is how many ids are scored at a time. "
            f"Use 2048, or chunk={vocabulary_size} for all at once."
        )


def flat(hidden: tf.Tensor, targets: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Flattens `hidden [T, B, H]` and `targets [T, B]` to `[T * B, H]` and `[T * B]`, int32."""
    targets = tf.cast(targets, tf.int32)
    return tf.reshape(hidden, [-1, hidden.shape[-1]]), tf.reshape(targets, [-1])


def wide(dtype: tf.DType) -> tf.DType:
    """Returns the type for sums over the vocabulary: float32 or wider."""
    return tf.float32 if dtype.size < tf.float32.size else dtype


def _forward(
    hidden: tf.Tensor, w: tf.Tensor, b: tf.Tensor, targets: tf.Tensor, chunk: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Computes loss and log normaliser of all rows, `[N]` each."""
    chunks = _Chunks(w, b, chunk)
    dtype = wide(hidden.dtype)

    def step(k: tf.Tensor, carried: Parts) -> tuple[Parts, Parts]:
        logits = chunks.logits(k, hidden)
        here = tf.equal(chunks.ids(k), targets[:, None])
        target = tf.reduce_sum(tf.where(here, logits, tf.zeros_like(logits)), axis=-1)
        return (carried[0] + target,), (tf.reduce_logsumexp(logits, axis=-1),)

    carried = (tf.zeros([hidden.shape[0]], dtype),)
    kept = [((hidden.shape[0],), dtype)]
    (target,), (norms,) = _loop(step, chunks.count, chunks.count, carried, kept)
    norm = tf.reduce_logsumexp(norms, axis=0)
    return norm - target, norm


def _backward(
    hidden: tf.Tensor,
    w: tf.Tensor,
    b: tf.Tensor,
    targets: tf.Tensor,
    chunk: int,
    norm: tf.Tensor,
    d_loss: tf.Tensor,
) -> Parts:
    """Computes the gradients of `hidden`, `w` and `b`.

    The gradient of the logits is `d_loss * (softmax - onehot)`.
    """
    chunks = _Chunks(w, b, chunk)
    counts = tf.not_equal(d_loss, 0)[:, None]
    hidden = tf.where(counts, hidden, tf.zeros_like(hidden))  # 0 * NaN would be NaN

    def step(k: tf.Tensor, carried: Parts) -> tuple[Parts, Parts]:
        softmax = tf.exp(chunks.logits(k, hidden) - norm[:, None])
        onehot = tf.cast(tf.equal(chunks.ids(k), targets[:, None]), softmax.dtype)
        d_logits = d_loss[:, None] * (softmax - onehot)
        d_logits = tf.where(counts, d_logits, tf.zeros_like(d_logits))
        d_b = tf.reduce_sum(d_logits, axis=0)
        d_logits = tf.cast(d_logits, hidden.dtype)
        d_hidden = carried[0] + tf.cast(d_logits @ chunks.weights(k), softmax.dtype)
        d_w = tf.matmul(d_logits, hidden, transpose_a=True)
        return (d_hidden,), (d_w, tf.cast(d_b, b.dtype))

    carried = (tf.zeros(hidden.shape, wide(hidden.dtype)),)
    kept = [((chunks.size, w.shape[1]), w.dtype), ((chunks.size,), b.dtype)]
    (d_hidden,), (d_w, d_b) = _loop(step, chunks.count, chunks.count, carried, kept)
    return tf.cast(d_hidden, hidden.dtype), chunks.join(d_w), chunks.join(d_b)


class _Chunks:
    """Divides the vocabulary into `count` chunks of `size` ids.

    If `size` does not divide V, the last chunk overlaps the one before, and the ids that both have
    are left out of the last.
    """

    def __init__(self, w: tf.Tensor, b: tf.Tensor, chunk: int) -> None:
        self._w, self._b = w, b
        self._all = b.shape[0]
        chunk = min(chunk, self._all)
        even = (size for size in range(chunk, chunk // 2, -1) if self._all % size == 0)
        self.size = next(even, chunk)
        self.count = -(-self._all // self.size)
        self._twice = self.count * self.size - self._all

    def ids(self, k: tf.Tensor) -> tf.Tensor:
        """Returns the ids of chunk k, `[size]`, with -1 for ids that are left out."""
        ids = self._start(k) + tf.range(self.size)
        return tf.where(ids >= k * self.size, ids, -1) if self._twice else ids

    def weights(self, k: tf.Tensor) -> tf.Tensor:
        """Returns the rows of the weight matrix that chunk k scores, `[size, H]`."""
        return tf.slice(self._w, [self._start(k), 0], [self.size, self._w.shape[1]])

    def logits(self, k: tf.Tensor, hidden: tf.Tensor) -> tf.Tensor:
        """Computes the logits of chunk k, `[N, size]`, -inf for ids that are left out."""
        products = tf.matmul(hidden, self.weights(k), transpose_b=True)
        logits = products + tf.slice(self._b, [self._start(k)], [self.size])
        logits = tf.cast(logits, wide(logits.dtype))
        if not self._twice:
            return logits
        return tf.where(self.ids(k) >= 0, logits, tf.cast(-np.inf, logits.dtype))

    def join(self, pieces: tf.Tensor) -> tf.Tensor:
        """Joins values of all chunks, `[count, size, ...]`, to `[V, ...]`."""
        if not self._twice:
            return tf.reshape(pieces, [self._all, *pieces.shape[2:]])
        even = tf.reshape(pieces[:-1], [-1, *pieces.shape[2:]])
        return tf.concat([even, pieces[-1, self._twice :]], axis=0)

    def _start(self, k: tf.Tensor) -> tf.Tensor:
        return tf.minimum(k * self.size, self._all - self.size)


def _loop(
    step: Callable,
    trips: int | tf.Tensor,
    most: int,
    carried: Parts,
    kept: Sequence[tuple[Sequence[int], tf.DType]],
) -> tuple[Parts, Parts]:
    """Runs `step(k, carried) -> (carried, kept)` for k below `trips`, in one `tf.while_loop`.

    Returns:
      The last `carried`, and the kept values of all steps, `[most, ...]`: those of step k at index
      k, and 0 from `trips` on. `kept` gives their shapes and dtypes.
    """
    arrays = tuple(tf.TensorArray(dtype, size=most, element_shape=shape) for shape, dtype in kept)

    def body(k: tf.Tensor, carried: Parts, arrays: tuple) -> tuple:
        carried, parts = step(k, carried)
        arrays = tuple(array.write(k, part) for array, part in zip(arrays, parts, strict=True))
        return k + 1, carried, arrays

    _, carried, arrays = tf.while_loop(
        lambda k, *_: k < trips,
        body,
        (tf.constant(0), carried, arrays),
        maximum_iterations=most,
        parallel_iterations=1,
    )
    return carried, tuple(array.stack() for array in arrays)
