"""Exceptions for users' mistakes and for runs that stop early; output that may be closed."""

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator

from absl import logging


class UnfinishedError(Exception):
    """Raised when a run was saved before its end; the same command continues it."""


class UsageError(Exception):
    """Raised for a mistake that the user can correct: `launch` prints one line, no traceback."""


@contextlib.contextmanager
def usage_errors() -> Iterator[None]:
    """Turns ValueError, TypeError, OSError and OverflowError raised inside into UsageError."""
    try:
        yield
    except (ValueError, TypeError, OSError, OverflowError) as error:
        logging.debug("%s", traceback.format_exc())  # seen with --verbosity=1
        raise UsageError(str(error)) from None


class Output:
    """Writes to standard output, and survives its being closed or full.

    Attributes:
      error: the first failure, after which nothing more is written; None if there was none.
    """

    def __init__(self) -> None:
        self.error: OSError | None = None

    def tell(self, text: str) -> None:
        """Prints a text; a failure is logged, because the run's files do not depend on it."""
        try:
            print(text, flush=True)
        except OSError as error:
            self.error = error
            logging.error("Standard output cannot be written: %s.", error.strerror)
            # Buffered text would fail again when the process ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


output = Output()
