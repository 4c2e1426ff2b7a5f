"""Matrix products in a smaller type than the one everything else is kept in."""

import tensorflow as tf


def product(a: tf.Tensor, w: tf.Tensor, compute_dtype: tf.DType | None = None) -> tf.Tensor:
    """`a @ w`, both rounded to `compute_dtype` first; the result is in the type of `a`.

    Args:
      a: `[N, D]`.
      w: `[D, E]`.
      compute_dtype: None: as they are. With `tf.bfloat16` the hardware multiplies in bfloat16
        and adds up in float32, and the gradients' products do the same; parameters, states
        and losses stay in the type that they have.

    Returns:
      `[N, E]`.

    Example: bfloat16 has 8 bits of mantissa.
      >>> float(product(tf.constant([[1.001]]), tf.ones([1, 1]), tf.bfloat16)[0, 0])
      1.0

    Reference: Micikevicius et al. (2018), Mixed precision training; Kalamkar et al. (2019),
      A study of bfloat16 for deep learning training.
    """
    if compute_dtype is None or compute_dtype == a.dtype:
        return a @ w
    return tf.cast(tf.cast(a, compute_dtype) @ tf.cast(w, compute_dtype), a.dtype)
