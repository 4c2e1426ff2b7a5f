"""Matrix products by the native kernels, where they are faster than XLA's."""

from collections.abc import Callable

import tensorflow as tf

from tbptt.native import library
from tbptt.native.calls import call
from tbptt.native.choice import resolve

FEW_ROWS, MANY_ROWS = 6, 128  # the kernel reads the matrix in place; packing it pays
LEAST, MOST = 1e6, 5e8  # operations of a product in float32, see `is_faster`


def weight_gradient(entered: tf.Tensor, d_z: tf.Tensor, size: int, *, rounds: bool) -> tf.Tensor:
    """Computes `sum_t,b entered[t, b, :size]^T d_z[t, b]`, `[size, G]`, as one product.

    Args:
      entered: `[T, B, H]` float32, or rows in bfloat16 that are padded, as the loops return them.
      d_z: `[T, B, G]`.
      size: H.
      rounds: whether `d_z` is rounded to bfloat16; `entered` is then.
    """
    a, b = (tf.reshape(part, [-1, part.shape[-1]]) for part in (entered, d_z))
    return _call(a, b, size, d_z.shape[-1], transpose_a=True, rounds=rounds)


def is_faster(a: tf.Tensor, w: tf.Tensor, compute_dtype: tf.DType | None) -> bool:
    """Returns whether `a [N, D] @ w [D, E]` is left to the native kernel.

    That is so, where the kernels are used at all, for products in bfloat16, of which XLA has no
    fast ones on CPUs; and in float32 for those of many rows and of middle size, which XLA takes too
    long to begin, and of a few rows with a large matrix. XLA's largest are a tenth faster than the
    kernel's with AVX-512 alone, and slower on processors with AMX, see `tools.bench.native`.
    """
    known = a.shape.is_fully_defined() and w.shape.is_fully_defined()
    if not known or resolve("auto", a.dtype, compute_dtype) != "native":
        return False
    if compute_dtype == tf.bfloat16:
        return True
    rows, operations = a.shape[0], 2.0 * a.shape[0] * w.shape[0] * w.shape[1]
    few = rows <= FEW_ROWS and w.shape[0] * w.shape[1] >= LEAST / 8
    return few or (rows >= MANY_ROWS and _is_of_middle_size(operations))


def _is_of_middle_size(operations: float) -> bool:
    return operations >= LEAST and (operations < MOST or library.load().path == "amx")


def differentiable(a: tf.Tensor, w: tf.Tensor, compute_dtype: tf.DType | None) -> tf.Tensor:
    """Computes `a @ w`, `[N, E]` float32, and its gradients, in float32 or rounded to bfloat16."""
    rounds = compute_dtype == tf.bfloat16

    @tf.custom_gradient
    def multiply(a: tf.Tensor, w: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        def gradient(d: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            if a.shape[0] < MANY_ROWS:  # packing `w` would take longer than the product
                cast = [tf.cast(x, tf.bfloat16) if rounds else x for x in (a, w, d)]
                d_a = tf.matmul(cast[2], cast[1], transpose_b=True)
                d_w = tf.matmul(cast[0], cast[2], transpose_a=True)
                return tf.cast(d_a, tf.float32), tf.cast(d_w, tf.float32)
            d_a = product(d, w, transpose_b=True, rounds=rounds)
            return d_a, product(a, d, transpose_a=True, rounds=rounds)

        return product(a, w, rounds=rounds), gradient

    return multiply(a, w)


def product(
    a: tf.Tensor,
    b: tf.Tensor,
    *,
    transpose_a: bool = False,
    transpose_b: bool = False,
    rounds: bool = False,
) -> tf.Tensor:
    """Computes `a @ b` in float32, either transposed; or both rounded to bfloat16 first."""
    rows = a.shape[1] if transpose_a else a.shape[0]
    columns = b.shape[0] if transpose_b else b.shape[1]
    return _call(
        a, b, rows, columns, transpose_a=transpose_a, transpose_b=transpose_b, rounds=rounds
    )


def _call(
    a: tf.Tensor,
    b: tf.Tensor,
    rows: int,
    columns: int,
    *,
    transpose_a: bool = False,
    transpose_b: bool = False,
    rounds: bool = False,
) -> tf.Tensor:
    (result,) = call(
        "tbptt_product",
        [a, b],
        [([rows, columns], tf.float32)],
        transpose_a=int(transpose_a),
        transpose_b=int(transpose_b),
        rounds=int(rounds),
    )
    return result
