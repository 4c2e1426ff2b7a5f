"""Says where the native kernels run layers, and leaves them out of programs for other machines."""

import contextlib
import contextvars
import platform
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from tbptt.native import library

_left_out = contextvars.ContextVar("left_out", default=False)


@contextlib.contextmanager
def left_out(is_left_out: bool = True) -> Iterator[None]:
    """Leaves the native kernels out of everything that is traced inside.

    It is for programs that run elsewhere, as exports do: layers run on XLA's own operations.

    Example:
      >>> with left_out():
      ...     resolve("native", tf.float32, None)
      'fused'
    """
    token = _left_out.set(is_left_out)
    try:
        yield
    finally:
        _left_out.reset(token)


def resolve(backend: str, dtype: tf.DType, compute_dtype: tf.DType | None) -> str:
    """Returns the backend that a layer without other options runs on.

    `auto` is `native` where the kernels take the types, no other device than CPUs is visible and
    the machine can compile the kernels for its vector instructions, and `fused` elsewhere. It was
    the faster one at every size measured, see `tools.bench.native`. Inside `left_out` `native` is
    `fused` as well.

    Args:
      backend: what the user asked for.
      dtype: the type of parameters, inputs and state.
      compute_dtype: the type of the products. None: `dtype`.
    """
    if backend not in ("auto", "native"):
        return backend
    if _left_out.get():
        return "fused"
    if backend == "native":
        return backend
    fits = not _unfit(dtype, compute_dtype) and not _other_devices() and _is_fast()
    return "native" if fits else "fused"


def check_layer(dtype: tf.DType, compute_dtype: tf.DType | None, **options: Any) -> None:
    """Raises unless the kernels can run a layer with these options; for `backend="native"`.

    Args:
      dtype, compute_dtype: as of `resolve`.
      **options: the layer's options that the kernels do not have, by name; each must be off: None,
        False, 0, or zeros.

    Raises:
      ValueError: a type or an option is not supported, a GPU or TPU is visible, or the kernels
        cannot be compiled on this machine.

    Example:
      >>> check_layer(tf.float32, None, peepholes=True)  # doctest: +ELLIPSIS
      Traceback (most recent call last):
      ValueError: peepholes (True) cannot be with backend='native', whose kernels have no such ...
    """
    for name, value in options.items():
        if any(value) if isinstance(value, tuple) else value:
            raise ValueError(
                f"{name} ({value}) cannot be with backend='native', whose kernels have no such "
                f"option. Use backend='auto' or 'fused', or leave {name} off."
            )
    reason = _unfit(dtype, compute_dtype)
    if not reason and (others := _other_devices()):
        reason = f"the kernels are for CPUs, but TensorFlow sees {', '.join(others)}"
    if not reason and not library.available():
        reason = library.why_not()
    if reason:
        raise ValueError(
            f"backend='native' is not available: {reason}. Use backend='auto', which runs on "
            "every machine and has the same parameters."
        )


def _unfit(dtype: tf.DType, compute_dtype: tf.DType | None) -> str:
    """Returns why the kernels do not take these types, or nothing if they do."""
    if dtype != tf.float32:
        return f"dtype ({tf.as_dtype(dtype).name}) must be float32"
    if compute_dtype not in (None, tf.float32, tf.bfloat16):
        return f"compute_dtype ({compute_dtype.name}) must be float32 or bfloat16"
    return ""


def _is_fast() -> bool:
    """Returns whether there are kernels, and not only those without AVX2 on an x86 processor."""
    if not library.available():
        return False
    return library.load().path != "portable" or platform.machine().lower() in ("aarch64", "arm64")


def _other_devices() -> list[str]:
    """Returns the names of the visible devices that are not CPUs."""
    return [d.name for d in tf.config.get_visible_devices() if d.device_type != "CPU"]
