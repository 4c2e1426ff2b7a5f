"""A matrix product over the last axis."""

import tensorflow as tf

from tbptt.layers.initializers import Initializer, glorot_uniform
from tbptt.types import Seed


def linear(inputs: tf.Tensor, w: tf.Tensor) -> tf.Tensor:
    """`[..., D] x [D, E] -> [..., E]`, as one matrix product whatever the leading axes."""
    if inputs.shape.rank == 2:
        return inputs @ w
    flat = tf.reshape(inputs, [-1, inputs.shape[-1]])
    return tf.reshape(flat @ w, [*inputs.shape[:-1], w.shape[-1]])


class Dense(tf.Module):
    """`outputs = inputs @ w + b`.

    Attributes:
      w: `[input_size, output_size]`.
      b: `[output_size]`, zero at first.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        seed: Seed,
        initializer: Initializer | None = None,
        dtype: tf.DType = tf.float32,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        initializer = initializer or glorot_uniform()
        self.w = tf.Variable(initializer([input_size, output_size], seed, dtype), name="w")
        self.b = tf.Variable(tf.zeros([output_size], dtype), name="b")

    def __call__(self, inputs: tf.Tensor) -> tf.Tensor:
        """`[..., input_size] -> [..., output_size]`."""
        return linear(inputs, self.w) + self.b
