"""The loop over the windows of a call: the same for training and for evaluation."""

from collections.abc import Callable

import tensorflow as tf

from tbptt.streams.feed import Chunk
from tbptt.types import Nest, Window


def fold(chunk: Chunk, body: Callable[[Window, Nest], Nest], carry: Nest) -> Nest:
    """`carry <- body(window, carry)` for each window of `chunk`, in one `tf.while_loop`.

    How many windows there are, and which, is data: every call is the same program.

    Args:
      chunk: `chunk.count` windows from `chunk.first` on, modulo the M it holds.
      body: traced once. May assign variables.
      carry: a nest of tensors.
    """
    held = tf.nest.flatten(chunk.windows.inputs)[0].shape[0]  # M

    def turn(k: tf.Tensor, carry: Nest) -> tuple[tf.Tensor, Nest]:
        return k + 1, body(chunk.windows.at((chunk.first + k) % held), carry)

    _, carry = tf.while_loop(
        lambda k, _: k < chunk.count,
        turn,
        (tf.zeros([], tf.int64), carry),
        parallel_iterations=1,
    )
    return carry
