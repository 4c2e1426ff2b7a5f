"""Mixed precision: matrix products in bfloat16 or float16, everything else in float32."""

import contextlib
import contextvars
from collections.abc import Iterator

import tensorflow as tf

from tbptt import native

_in_full = contextvars.ContextVar("in_full", default=False)  # see `full_precision`


def product(a: tf.Tensor, w: tf.Tensor, compute_dtype: tf.DType | None = None) -> tf.Tensor:
    """Computes `a @ w` with both rounded to `compute_dtype`; the result has the type of `a`.

    Args:
      a: `[N, D]`.
      w: `[D, E]`.
      compute_dtype: the type of the product. None: that of `a` and `w`. With `tf.bfloat16` the
        hardware multiplies in bfloat16 and sums in float32, also for the gradients; parameters,
        states and losses keep their type.

    Returns:
      `[N, E]`.

    Example: bfloat16 has 8 bits of mantissa.
      >>> float(product(tf.constant([[1.001]]), tf.ones([1, 1]), tf.bfloat16)[0, 0])
      1.0

    Reference: Micikevicius et al. (2018), Mixed precision training; Kalamkar et al. (2019),
      A study of bfloat16 for deep learning training.
    """
    compute_dtype = in_effect(compute_dtype) or a.dtype
    if native.products.is_faster(a, w, compute_dtype):
        return native.products.differentiable(a, w, compute_dtype)
    if compute_dtype == a.dtype:
        return a @ w
    return tf.cast(tf.cast(a, compute_dtype) @ tf.cast(w, compute_dtype), a.dtype)


def in_effect(compute_dtype: tf.DType | None) -> tf.DType | None:
    """Returns the type of products: `compute_dtype`, or None inside of `full_precision`."""
    return None if _in_full.get() else compute_dtype


@contextlib.contextmanager
def full_precision(enabled: bool = True) -> Iterator[None]:
    """Lets `product` ignore `compute_dtype` in everything that is traced or run inside.

    It is for programs that have no products in bfloat16, as those of LiteRT.

    Example:
      >>> with full_precision():
      ...     product(tf.constant([[1.001]]), tf.ones([1, 1]), tf.bfloat16)[0, 0] > 1.0
      <tf.Tensor: shape=(), dtype=bool, numpy=True>
    """
    token = _in_full.set(enabled)
    try:
        yield
    finally:
        _in_full.reset(token)
