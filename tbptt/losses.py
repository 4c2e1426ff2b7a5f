"""Losses, one number for each step of each row; and their sums, weights and reductions."""

import math
from collections.abc import Mapping

import tensorflow as tf

from tbptt import checks
from tbptt.types import Loss, Nest, Window, WindowLoss

REDUCTIONS = ("mean", "sum_over_window")


def cross_entropy(logits: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
    """Computes the negative log probability of each target, in nats.

        loss = log(sum_v exp(logits_v)) - logits_target

    Args:
      logits: `[T, B, V]`.
      targets: `[T, B]` ids in `[0, V)`; the streams refuse others.

    Returns:
      `[T, B]`, at least float32.

    Example: four equally likely ids.
      >>> loss = cross_entropy(tf.zeros([1, 1, 4]), tf.zeros([1, 1], tf.int32))
      >>> loss.numpy().astype(float).round(4).tolist()
      [[1.3863]]
    """
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=targets, logits=_wide(logits))


def binary_cross_entropy(logits: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
    """Computes the binary cross entropy, summed over D independent targets, in nats.

        loss = sum_d log(1 + exp(logits_d)) - targets_d logits_d

    Args:
      logits: `[T, B, D]`.
      targets: `[T, B, D]`, from 0 to 1.

    Returns:
      `[T, B]`.

    Example: two targets, each equally likely on and off.
      >>> loss = binary_cross_entropy(tf.zeros([1, 1, 2]), tf.constant([[[0.0, 1.0]]]))
      >>> loss.numpy().astype(float).round(4).tolist()
      [[1.3863]]
    """
    logits = _wide(logits)
    targets = tf.cast(targets, logits.dtype)
    each = tf.nn.sigmoid_cross_entropy_with_logits(labels=targets, logits=logits)
    return tf.reduce_sum(each, axis=-1)


def squared_error(outputs: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
    """Computes the mean of `(outputs - targets)^2` over D values: two `[T, B, D]` to `[T, B]`.

    Example:
      >>> squared_error(tf.zeros([1, 1, 2]), tf.constant([[[1.0, 3.0]]])).numpy().tolist()
      [[5.0]]
    """
    outputs, targets = _wide(outputs), _wide(targets)
    return tf.reduce_mean(tf.math.squared_difference(outputs, targets), axis=-1)


def absolute_error(outputs: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
    """Computes the mean of `|outputs - targets|` over D values: two `[T, B, D]` to `[T, B]`.

    Example:
      >>> absolute_error(tf.zeros([1, 1, 2]), tf.constant([[[1.0, -3.0]]])).numpy().tolist()
      [[2.0]]
    """
    return tf.reduce_mean(tf.abs(_wide(outputs) - _wide(targets)), axis=-1)


def gaussian_nll(outputs: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
    """Computes the negative log density of D values under normal distributions, in nats.

        mean, s = split(outputs),  s is the logarithm of the standard deviation
        loss = sum_d ((targets_d - mean_d) / exp(s_d))^2 / 2 + s_d + log(2 pi) / 2

    Args:
      outputs: `[T, B, 2 D]`.
      targets: `[T, B, D]`.

    Returns:
      `[T, B]`.

    Example:
      >>> loss = gaussian_nll(tf.zeros([1, 1, 2]), tf.zeros([1, 1, 1]))
      >>> loss.numpy().astype(float).round(4).tolist()
      [[0.9189]]
    """
    mean, log_deviation = tf.split(_wide(outputs), 2, axis=-1)
    scaled = (_wide(targets) - mean) * tf.exp(-log_deviation)
    each = 0.5 * scaled * scaled + log_deviation + 0.5 * math.log(2.0 * math.pi)
    return tf.reduce_sum(each, axis=-1)


def counted_only(nest: Nest, weight: tf.Tensor | None) -> Nest:
    """Replaces values by 0, without a gradient, at steps whose `weight [T, B]` is 0.

    It selects before the loss, because a selection after it has a gradient of 0 times the
    derivative of the loss, which is NaN where that is not finite. Leaves that are not floating, or
    not `[T, B, ...]`, stay.
    """
    if weight is None:
        return nest
    return tf.nest.map_structure(
        lambda x: (
            tf.where(
                tf.reshape(weight > 0, [*weight.shape, *[1] * (x.shape.rank - 2)]),
                x,
                tf.zeros_like(x),
            )
            if x.dtype.is_floating and x.shape[:2] == weight.shape
            else x
        ),
        nest,
    )


def window_loss(
    loss: Loss, metrics: Mapping[str, Loss], outputs: Nest, window: Window
) -> WindowLoss:
    """Computes loss and metrics of a model's outputs against the targets of a window.

    Args:
      loss, metrics: functions `(outputs, targets) -> [T, B]`.
      outputs: the outputs of all steps; those of weight 0 are left out, see `counted_only`.
      window: gives targets and weight.
    """
    outputs = counted_only(outputs, window.weight)
    measured = {name: metric(outputs, window.targets) for name, metric in metrics.items()}
    return WindowLoss(loss(outputs, window.targets), measured)


def weighted_sum(loss: tf.Tensor, weight: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the weighted sum of `loss [T, B]` and the sum of the weights, two scalars.

    A step of weight 0 is left out by selection, so its loss does not matter, even if it is NaN. Its
    gradient is still 0 times the derivative of the loss: if that may not be finite, select the
    outputs before the loss too, see `counted_only`.
    """
    loss = _wide(loss)
    if weight is None:
        return tf.reduce_sum(loss), tf.cast(tf.size(loss), loss.dtype)
    weight = tf.cast(weight, loss.dtype)
    counted = tf.where(weight > 0, loss * weight, tf.zeros_like(loss))
    return tf.reduce_sum(counted), tf.reduce_sum(weight)


def _wide(tensor: tf.Tensor) -> tf.Tensor:
    """Casts to float32 at least, because squares and sums of many steps overflow smaller types."""
    return tensor if tensor.dtype.size >= tf.float32.size else tf.cast(tensor, tf.float32)


def reduce(reduction: str, loss_sum: tf.Tensor, weight_sum: tf.Tensor, rows: int) -> tf.Tensor:
    """Reduces a window's loss to the scalar that is differentiated.

    Args:
      reduction: `mean`: the weighted mean over all steps; `sum_over_window`: the sum over the
        steps, averaged over the rows, T times larger. Learning rate and clipping norm of
        Zaremba et al. (2014) are for the second.
      loss_sum: the weighted sum of the loss over one window.
      weight_sum: the sum of the weights; 0 gives 0.
      rows: B.
    """
    checks.check_choice("reduction", reduction, REDUCTIONS)
    if reduction == "sum_over_window":
        return loss_sum / rows
    return tf.math.divide_no_nan(loss_sum, weight_sum)


def perplexity(nats: float) -> float:
    """Returns exp(nats): the number of equally likely tokens with the same loss."""
    return math.exp(nats) if nats < 700 else math.inf


def bits(nats: float) -> float:
    """Converts nats to bits: bits per character, if a token is a character."""
    return nats / math.log(2.0)
