"""Tests a readout of your own: its loss is the cross entropy of its logits, row by row."""

import numpy as np
import tensorflow as tf

from tbptt.losses import cross_entropy
from tbptt.testing.compare import assert_close, require
from tbptt.types import Nest, Readout


def check_readout(
    readout: Readout,
    hidden: tf.Tensor,
    targets: tf.Tensor,
    *,
    jit_compile: bool = False,
    precision: str | None = None,
) -> None:
    """Checks that a readout's loss is the cross entropy of its logits, and rows are independent.

    These are laws 4 and 5. Without training, loss and gradients are those of the cross entropy of
    `logits`; logits are `[..., V]` for hidden states `[..., H]` of any leading shape; and the loss
    of a step depends on its own hidden state alone. In training the loss is finite, and has the
    same shape.

    Args:
      readout: a `Readout`.
      hidden: `[T, B, H]`, with B > 1.
      targets: `[T, B]` integers.
      jit_compile: whether XLA compiles what is checked.
      precision: see `assert_close`.

    Raises:
      LawError: a law is broken.

    Example:
      >>> readout = FullSoftmax(4, 7, seed=make_seed(0))
      >>> check_readout(readout, tf.ones([3, 2, 4]), tf.zeros([3, 2], tf.int32))
    """
    parameters = list(readout.trainable_variables)
    size = readout.vocabulary_size
    logits = readout.logits(hidden)
    shape = [*hidden.shape[:-1], size]
    require(logits.shape.as_list() == shape, 0, f"logits have shape {logits.shape}, not {shape}.")
    first = readout.logits(hidden[0, 0])
    assert_close(first, logits[0, 0], precision, law=4, what="the logits of one hidden state [H]")

    def loss(hidden: tf.Tensor) -> tf.Tensor:
        return readout.loss(hidden, targets, training=False, seed=None)

    def of_logits(hidden: tf.Tensor) -> tf.Tensor:
        return cross_entropy(readout.logits(hidden), targets)

    def with_gradients(function: object, jit: bool) -> Nest:
        @tf.function(autograph=False, jit_compile=jit)
        def run(hidden: tf.Tensor) -> Nest:
            with tf.GradientTape() as tape:
                tape.watch(hidden)
                losses = function(hidden)  # type: ignore[operator]
                total = tf.reduce_sum(losses * tf.range(1.0, losses.shape[0] + 1)[:, None])
            gradients = tape.gradient(
                total,
                [hidden, *parameters],
                unconnected_gradients=tf.UnconnectedGradients.ZERO,
            )
            return losses, [tf.convert_to_tensor(gradient) for gradient in gradients]

        return run(hidden)

    what = "loss and gradients, against the cross entropy of the logits"
    actual, expected = with_gradients(loss, jit_compile), with_gradients(of_logits, False)
    assert_close(actual, expected, precision, law=5, what=what)

    others = tf.concat([hidden[:, :1], 2.0 * hidden[:, 1:] + 1.0], axis=1)
    what = "the loss of row 0, where the hidden states of other rows changed"
    assert_close(loss(others)[:, 0], actual[0][:, 0], precision, law=4, what=what)

    trained = readout.loss(hidden, targets, training=True, seed=tf.constant([3, 5]))
    require(
        trained.shape == targets.shape and np.isfinite(trained).all(),
        0,
        f"the loss in training has shape {trained.shape} or is not finite; targets have "
        f"{targets.shape}.",
    )
