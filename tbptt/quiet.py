"""Imports TensorFlow without the log lines that its C++ libraries write while they load.

These lines are about oneDNN and missing GPUs, at any log level. If `TF_CPP_MIN_LOG_LEVEL`
is set in the environment, or TensorFlow was imported before `tbptt`, this module does nothing.
"""

import contextlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def standard_error_closed() -> Iterator[None]:
    """Sends standard error to `os.devnull` inside the block, which silences C++ libraries."""
    try:
        kept = os.dup(2)
    except OSError:  # there is no standard error
        yield
        return
    if sys.stderr is not None:
        sys.stderr.flush()
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


if "tensorflow" not in sys.modules and "TF_CPP_MIN_LOG_LEVEL" not in os.environ:
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    with standard_error_closed():
        import tensorflow  # noqa: F401
