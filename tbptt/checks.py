"""Checks of arguments: raise errors that give the name, the value, the rule and a remedy."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tbptt.types import Nest


def check_at_least(name: str, value: float, least: float) -> None:
    """Raises ValueError unless `value >= least`."""
    if not value >= least:
        raise ValueError(f"{name} ({value}) must be at least {least}.")


def check_between(name: str, value: float, low: float, high: float) -> None:
    """Raises ValueError unless `low <= value < high`."""
    if not low <= value < high:
        raise ValueError(f"{name} ({value}) must be at least {low} and below {high}.")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raises ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} ({value!r}) must be one of {', '.join(choices)}.")


def check_shape(name: str, value: Any, shape: Sequence[int | None]) -> None:
    """Raises ValueError unless `value` has `shape`, in which None fits any size."""
    given = tuple(value.shape)
    fits = len(given) == len(shape) and all(
        want is None or have is None or want == have
        for have, want in zip(given, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} has shape {list(given)}, but must be [{wanted}].")


def check_dtype(name: str, value: Any, dtype: tf.DType) -> None:
    """Raises TypeError unless `value` has `dtype`."""
    if tf.as_dtype(value.dtype) != dtype:
        given = tf.as_dtype(value.dtype).name
        raise TypeError(f"{name} has dtype {given}, but must be {dtype.name}.")


def check_compute_dtype(compute_dtype: tf.DType | None, dtype: tf.DType) -> tf.DType | None:
    """Returns the type of matrix products, or None if they are computed in `dtype`.

    Raises:
      ValueError: it is neither `dtype`, nor bfloat16 or float16 with float32 parameters; or it is
        float16 and TensorFlow sees no GPU.
    """
    if compute_dtype is None or compute_dtype == dtype:
        return None
    if dtype != tf.float32 or compute_dtype not in (tf.bfloat16, tf.float16):
        raise ValueError(
            f"compute_dtype ({tf.as_dtype(compute_dtype).name}) must be the parameters' own "
            f"({dtype.name}), or bfloat16 or float16 with float32 parameters."
        )
    if compute_dtype == tf.float16 and not tf.config.list_physical_devices("GPU"):
        raise ValueError(
            "compute_dtype (float16) needs a GPU, and TensorFlow sees none: on a CPU its products "
            "are emulated and slow. Use bfloat16 or float32."
        )
    return compute_dtype


def check_like(name: str, value: Nest, like: Nest, advice: str) -> None:
    """Raises unless `value` has the structure, the shapes and the dtypes of `like`."""
    try:
        tf.nest.assert_same_structure(value, like)
    except (ValueError, TypeError):
        raise ValueError(
            f"{name} is {_structure(value)}, but must be {_structure(like)}. {advice}"
        ) from None
    for given, want in zip(tf.nest.flatten(value), tf.nest.flatten(like), strict=True):
        if given.shape != want.shape or given.dtype != want.dtype:
            raise ValueError(
                f"{name} has a part {_leaf(given)} where {_leaf(want)} is needed. {advice}"
            )


def _structure(nest: Nest) -> str:
    return str(tf.nest.map_structure(_leaf, nest)).replace("'", "")


def _leaf(tensor: Any) -> str:
    return f"{tf.as_dtype(tensor.dtype).name}{list(tensor.shape)}"
