"""Matrix products by the native kernels, where they are faster than XLA's."""

from collections.abc import Callable

import tensorflow as tf

from tbptt.native import library
from tbptt.native.calls import call
from tbptt.native.choice import resolve

FEW_ROWS, MANY_ROWS = 6, 128  # the kernel reads the matrix in place; packing it pays
LEAST, MOST = 1e6, 5e8  # operations of a product in float32, see `is_faster`


def weight_gradient(
    entered: tf.Tensor, d_z: tf.Tensor, sizes: tuple[int, int], *, rounds: bool
) -> list[tf.Tensor]:
    """Computes the gradients of the weights, `sum_t,b entered[t, b]^T d_z[t, b]`, as one product.

    Args:
      entered: `[T, B, D + H]` float32, or rows in bfloat16 that are padded, as the loops return
        them.
      d_z: `[T, B, G]`.
      sizes: D and H.
      rounds: whether `d_z` is rounded to bfloat16; `entered` is then.

    Returns:
      `[D, G]`, which is of no meaning if D is 0, and `[H, G]`.
    """
    a, b = (tf.reshape(part, [-1, part.shape[-1]]) for part in (entered, d_z))
    of_inputs, of_hidden = sizes
    first, further = (of_inputs, of_hidden) if of_inputs else (of_hidden, 0)
    results = _call(a, b, first, d_z.shape[-1], further, transpose_a=True, rounds=rounds)
    return results if of_inputs else results[::-1]


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
    def multiplied(a: tf.Tensor, w: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        def gradient(d: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return (
                multiply(d, w, transpose_b=True, rounds=rounds),
                multiply(a, d, transpose_a=True, rounds=rounds),
            )

        return product(a, w, rounds=rounds), gradient

    return multiplied(a, w)


def multiply(
    a: tf.Tensor,
    b: tf.Tensor,
    *,
    transpose_a: bool = False,
    transpose_b: bool = False,
    rounds: bool = False,
) -> tf.Tensor:
    """Computes a product of a gradient by the kernel or by XLA, whichever is faster.

    The arguments are those of `product`.
    """
    rows = b.shape[0] if transpose_a else a.shape[0]  # of the window: T * B
    operations = 2.0 * a.shape[0] * a.shape[1] * b.shape[0 if transpose_b else 1]
    # With few rows, packing a transposed matrix would take longer than the product.
    if rows >= MANY_ROWS and (rounds or _is_of_middle_size(operations)):
        return product(a, b, transpose_a=transpose_a, transpose_b=transpose_b, rounds=rounds)
    if rounds:
        a, b = (tf.cast(part, tf.bfloat16) for part in (a, b))
    result = tf.matmul(a, b, transpose_a=transpose_a, transpose_b=transpose_b)
    return tf.cast(result, tf.float32)


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
    given = dict(transpose_a=transpose_a, transpose_b=transpose_b, rounds=rounds)
    return _call(a, b, rows, columns, **given)[0]


def _call(
    a: tf.Tensor,
    b: tf.Tensor,
    rows: int,
    columns: int,
    further: int = 0,
    *,
    transpose_a: bool = False,
    transpose_b: bool = False,
    rounds: bool = False,
) -> list[tf.Tensor]:
    """Returns the first `rows` rows of a product, and the `further` ones."""
    return call(
        "tbptt_product",
        [a, b],
        [([rows, columns], tf.float32), ([further, columns], tf.float32)],
        transpose_a=int(transpose_a),
        transpose_b=int(transpose_b),
        rounds=int(rounds),
    )
