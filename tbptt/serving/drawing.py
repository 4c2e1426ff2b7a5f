"""The distribution that a `Sampler` draws from, its random numbers, and a draw."""

import numpy as np
import tensorflow as tf


def ranked_probabilities(
    logits: tf.Tensor, seen: tf.Tensor, settings: dict[str, tf.Tensor]
) -> tuple[tf.Tensor, tf.Tensor]:
    """Computes the distribution that the next token is drawn from, the most probable one first.

    Args:
      logits: `[B, V]`.
      seen: `[B, V]` bool: tokens that were drawn or read before.
      settings: of `Sampling.as_tensors`.

    Returns:
      `[B, V]` ids, and their probabilities in the same order: 0 where a token is cut off.
    """
    logits = tf.cast(logits, tf.float32)
    penalty = settings["repetition_penalty"]
    penalised = tf.where(logits > 0, logits / penalty, logits * penalty)
    log_p = tf.nn.log_softmax(tf.where(seen, penalised, logits) / settings["temperature"])
    ids = tf.argsort(log_p, direction="DESCENDING", stable=True)
    p = tf.exp(tf.gather(log_p, ids, batch_dims=1))
    rank = tf.range(log_p.shape[-1])[None]
    kept = (rank < settings["top_k"]) | (settings["top_k"] == 0)
    before = tf.cumsum(p, axis=-1, exclusive=True)
    kept &= (before < settings["top_p"]) | (settings["top_p"] >= 1.0)
    kept &= p >= p[:, :1] * settings["min_p"]
    p = tf.where(kept | (rank == 0), p, 0.0)
    return ids, p / tf.reduce_sum(p, axis=-1, keepdims=True)


def draw(ids: tf.Tensor, p: tf.Tensor, uniform: tf.Tensor) -> tf.Tensor:
    """Draws one token a row by inverting the distribution: the first whose sum of `p` exceeds u.

    Args:
      ids, p: `[B, V]`, of `ranked_probabilities`.
      uniform: `[B]`, from 0 to below 1.

    Returns:
      `[B]` int32.
    """
    sums = tf.cumsum(p, axis=-1)
    rank = tf.reduce_sum(tf.cast(sums <= uniform[:, None] * sums[:, -1:], tf.int32), axis=-1)
    last = tf.reduce_sum(tf.cast(p > 0, tf.int32), axis=-1) - 1  # where rounding leads beyond
    return tf.gather(ids, tf.minimum(rank, last), batch_dims=1)


def uniforms(seeds: np.ndarray, begun: int, count: int) -> np.ndarray:
    """Returns numbers `begun` to `begun + count` of each seed's own sequence: `[count, B]`.

    They are Philox's, a counter-based generator, and multiples of 2^-24 below 1, which float32
    holds exactly; so they are the same on every machine.
    """
    columns = []
    for seed in seeds:
        philox = np.random.Philox(key=np.asarray(seed, np.int64).view(np.uint64))
        philox.advance(begun // 8)  # a count of the generator gives 8 numbers of 32 bits
        numbers = np.random.Generator(philox).integers(0, 1 << 24, begun % 8 + count)
        columns.append(numbers[begun % 8 :])
    return np.stack(columns, axis=1).astype(np.float32) / np.float32(1 << 24)
