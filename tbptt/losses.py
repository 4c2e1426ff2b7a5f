"""Losses give one number a step; sums and the weights they were taken over stay apart."""

import math

import tensorflow as tf

from tbptt import checks

REDUCTIONS = ("mean", "sum_over_window")


def cross_entropy(logits: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
    """Negative log probability of each target, in nats.

        loss = log(sum_v exp(logits_v)) - logits_target

    Args:
      logits: `[T, B, V]`.
      targets: `[T, B]` ids in `[0, V)`; the streams refuse others.

    Returns:
      `[T, B]`, at least float32.

    Example: a guess among four.
      >>> loss = cross_entropy(tf.zeros([1, 1, 4]), tf.zeros([1, 1], tf.int32))
      >>> loss.numpy().astype(float).round(4).tolist()
      [[1.3863]]
    """
    if logits.dtype.size < tf.float32.size:
        logits = tf.cast(logits, tf.float32)
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=targets, logits=logits)


def weighted_sum(loss: tf.Tensor, weight: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
    """The sum of `loss [T, B]`, and the weight it was taken over, two scalars.

    A step of weight 0 is left out by selection, so what stands there cannot matter.
    """
    if weight is None:
        return tf.reduce_sum(loss), tf.cast(tf.size(loss), loss.dtype)
    weight = tf.cast(weight, loss.dtype)
    counted = tf.where(weight > 0, loss * weight, tf.zeros_like(loss))
    return tf.reduce_sum(counted), tf.reduce_sum(weight)


def reduce(reduction: str, loss_sum: tf.Tensor, weight_sum: tf.Tensor, rows: int) -> tf.Tensor:
    """The scalar that is differentiated.

    Args:
      reduction: `mean`: over everything that counts; `sum_over_window`: the sum over the
        steps, averaged over the rows, T times larger. Learning rate and clipping norm of
        Zaremba et al. (2014) belong to the second.
      loss_sum: of one window.
      weight_sum: what the sum was taken over; 0 gives 0.
      rows: B.
    """
    checks.check_choice("reduction", reduction, REDUCTIONS)
    if reduction == "sum_over_window":
        return loss_sum / rows
    return tf.math.divide_no_nan(loss_sum, weight_sum)


def perplexity(nats: float) -> float:
    """exp(nats): between how many equally likely tokens the model hesitates."""
    return math.exp(nats) if nats < 700 else math.inf


def bits(nats: float) -> float:
    """Nats in bits: bits per character, when a token is a character."""
    return nats / math.log(2.0)
