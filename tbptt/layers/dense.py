"""`Dense`: an affine map of the last axis."""

import tensorflow as tf

from tbptt import checks
from tbptt.layers.initializers import Initializer, glorot_uniform
from tbptt.precision import product
from tbptt.rebuild import rebuildable
from tbptt.types import Seed


def linear(inputs: tf.Tensor, w: tf.Tensor, compute_dtype: tf.DType | None = None) -> tf.Tensor:
    """Multiplies the last axis of `inputs [..., D]` by `w [D, E]`, in one matrix product.

    `compute_dtype` is the type of the product, see `precision.product`.
    """
    if inputs.shape.rank == 2:
        return product(inputs, w, compute_dtype)
    flat = tf.reshape(inputs, [-1, inputs.shape[-1]])
    return tf.reshape(product(flat, w, compute_dtype), [*inputs.shape[:-1], w.shape[-1]])


@rebuildable
class Dense(tf.Module):
    """An affine layer, `outputs = inputs @ w + b`, over the last axis.

    Attributes:
      w: `[input_size, output_size]`.
      b: `[output_size]`, initially zero.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        seed: Seed,
        initializer: Initializer | None = None,
        compute_dtype: tf.DType | None = None,
        dtype: tf.DType = tf.float32,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self._compute_dtype = checks.check_compute_dtype(compute_dtype, dtype)
        initializer = initializer or glorot_uniform()
        self.w = tf.Variable(initializer([input_size, output_size], seed, dtype), name="w")
        self.b = tf.Variable(tf.zeros([output_size], dtype), name="b")

    def __call__(self, inputs: tf.Tensor) -> tf.Tensor:
        """Maps inputs `[..., input_size]` to outputs `[..., output_size]`."""
        return linear(inputs, self.w, self._compute_dtype) + self.b
