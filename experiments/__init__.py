"""One script a study."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what C++ libraries write to standard error from the screen."""
    sys.stderr.flush()
    with open(os.devnull, "wb") as nothing:
        kept = os.dup(2)
        os.dup2(nothing.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


# `python -m experiments.NAME` imports for some seconds. An interrupt then ends the process without
# the traceback of an import; `launch` puts Python's own handler back.
if sys.argv[0] == "-m" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

# While it is imported, TensorFlow talks of oneDNN and of missing GPUs whatever the level is.
# With TF_CPP_MIN_LOG_LEVEL set, to any level, it is heard.
if "TF_CPP_MIN_LOG_LEVEL" not in os.environ:
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    with _quiet():
        import tensorflow  # noqa: F401
