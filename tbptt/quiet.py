"""Imports TensorFlow without the lines that its C++ libraries write while they are loaded.

They speak of oneDNN and of missing GPUs, whatever the log level is. With `TF_CPP_MIN_LOG_LEVEL` set
in the environment, to any level, or with TensorFlow imported before `tbptt`, nothing is done.
"""

import contextlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def standard_error_closed() -> Iterator[None]:
    """Keeps what C++ libraries write to standard error from the screen."""
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
