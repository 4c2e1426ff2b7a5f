"""The distribution that a `Sampler` draws from, its random numbers, and a draw."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf


def probabilities(logits: tf.Tensor, seen: tf.Tensor, settings: dict[str, tf.Tensor]) -> tf.Tensor:
    """Computes the distribution that the next token is drawn from.

    Nothing is sorted, which would take most of the time of a step: what `top_k` and `top_p` keep is
    found by halving, as the smallest probability that is kept.

    Args:
      logits: `[B, V]`.
      seen: `[B, V]` bool: tokens that were drawn or read before.
      settings: of `Sampling.as_tensors`, or `[B, 1]` each, for rows of different settings.

    Returns:
      Probabilities `[B, V]`, 0 where a token is cut off. Of tokens that are equally probable, the
      first ones are kept.
    """
    logits = tf.cast(logits, tf.float32)
    penalty = settings["repetition_penalty"]
    penalised = tf.where(logits > 0, logits / penalty, logits * penalty)
    p = tf.exp(tf.nn.log_softmax(tf.where(seen, penalised, logits) / settings["temperature"]))
    top_k, top_p = settings["top_k"], settings["top_p"]
    kept = p >= tf.reduce_max(p, axis=-1, keepdims=True) * settings["min_p"]
    kept &= tf.cond(
        tf.reduce_any((top_k > 0) | (top_p < 1.0)),
        lambda: _most_probable(p, top_k, top_p),
        lambda: tf.ones_like(kept),
    )
    first = tf.argmax(p, axis=-1, output_type=tf.int32)
    kept |= tf.one_hot(first, p.shape[-1], on_value=True, off_value=False, dtype=tf.bool)
    p = tf.where(kept, p, 0.0)
    return p / tf.reduce_sum(p, axis=-1, keepdims=True)


def _most_probable(p: tf.Tensor, top_k: tf.Tensor, top_p: tf.Tensor) -> tf.Tensor:
    """Returns `[B, V]` bool: the `top_k` tokens, of them those that together reach `top_p`.

    A token is kept if fewer than `top_k` tokens are more probable, and if these have less than
    `top_p` together. As integers, the bits of positive floats have the order of the floats.
    """
    bits = tf.bitcast(p, tf.int32)
    most = tf.where(top_k > 0, top_k, p.shape[-1])
    below = tf.where(top_p < 1.0, top_p, 2.0)  # more than all together: nothing is cut

    def numbers(of: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(tf.cast(of, tf.int32), axis=-1, keepdims=True)

    def mass(of: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(tf.where(of, p, 0.0), axis=-1, keepdims=True)

    level_k = _lowest(lambda level: numbers(bits > level) < most, p)
    level_p = _lowest(lambda level: mass(bits > level) < below, p)
    equal_k, equal_p = bits == level_k, bits == level_p
    before_k = numbers(bits > level_k) + _before(tf.cast(equal_k, tf.int32))
    before_p = mass(bits > level_p) + _before(tf.where(equal_p, p, 0.0))
    of_k = (bits > level_k) | (equal_k & (before_k < most))
    return of_k & ((bits > level_p) | (equal_p & (before_p < below)))


def _before(values: tf.Tensor) -> tf.Tensor:
    """Returns the sums of the values before each, `[B, V]`."""
    return tf.cumsum(values, axis=-1, exclusive=True)


def _lowest(holds: Callable[[tf.Tensor], tf.Tensor], p: tf.Tensor) -> tf.Tensor:
    """Returns for each row the lowest level `[B, 1]`, bits of a float, from which on it holds."""
    low = tf.zeros_like(p[:, :1], tf.int32)
    high = tf.fill(tf.shape(low), 1 << 30)  # the bits of 2.0

    def halve(k: tf.Tensor, low: tf.Tensor, high: tf.Tensor) -> tuple[tf.Tensor, ...]:
        middle = low + (high - low) // 2
        fine = holds(middle)
        return k + 1, tf.where(fine, low, middle + 1), tf.where(fine, middle, high)

    _, low, _ = tf.while_loop(
        lambda k, *_: k < 31, halve, (tf.constant(0), low, high), parallel_iterations=1
    )
    return low


def draw(p: tf.Tensor, uniform: tf.Tensor) -> tf.Tensor:
    """Draws one token a row by inverting the distribution: the first whose sum of `p` exceeds u.

    Args:
      p: `[B, V]`, of `probabilities`.
      uniform: `[B]`, from 0 to below 1.

    Returns:
      `[B]` int32.
    """
    sums = tf.cumsum(p, axis=-1)
    token = tf.reduce_sum(tf.cast(sums <= uniform[:, None] * sums[:, -1:], tf.int32), axis=-1)
    ids = tf.where(p > 0, tf.range(p.shape[-1]), 0)
    return tf.minimum(token, tf.reduce_max(ids, axis=-1))  # where rounding leads beyond the last


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
