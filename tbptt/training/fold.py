"""A call of the hot loop, and the loop over its windows: the same to train and to evaluate."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tbptt.streams.feed import Chunk
from tbptt.types import Nest, Window


class _Call:
    """A function of carry and chunk, of its own as far as TensorFlow can tell.

    TensorFlow counts traces by a function's code, and would warn of retracing where there are
    merely several trainers or evaluators. What it counts here is one program.
    """

    def __init__(self, function: Callable) -> None:
        self._function = function
        self.__name__ = function.__name__  # of the program in traces and dumps

    def __call__(self, carry: Nest, chunk: Chunk) -> Nest:
        return self._function(carry, chunk)


def make_program(function: Callable, *, jit_compile: bool) -> Any:
    """`function(carry, chunk)` as one `tf.function`; XLA compiles it, or not."""
    return tf.function(_Call(function), autograph=False, jit_compile=jit_compile)


def fold(chunk: Chunk, body: Callable[[Window, Nest], Nest], carry: Nest) -> Nest:
    """`carry <- body(window, carry)` for each window of `chunk`, in one `tf.while_loop`.

    How many windows there are, and which, is data: every call is the same program.

    Args:
      chunk: `chunk.count` windows from `chunk.first` on, modulo the M it holds.
      body: traced once. May assign variables.
      carry: a nest of tensors.
    """

    def turn(k: tf.Tensor, carry: Nest) -> tuple[tf.Tensor, Nest]:
        return k + 1, body(chunk.windows.at(chunk.place(k)), carry)

    _, carry = tf.while_loop(
        lambda k, _: k < chunk.count,
        turn,
        (tf.zeros([], tf.int64), carry),
        parallel_iterations=1,
    )
    return carry
