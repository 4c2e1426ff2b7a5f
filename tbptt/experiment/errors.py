"""Mistakes of a user, told in one line; and runs that end before they are through."""

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator

from absl import logging


class UnfinishedError(Exception):
    """The time of this process was up: the run is saved, and the same command goes on."""


class UsageError(Exception):
    """A mistake that the user can put right: told in one line, without a traceback."""


@contextlib.contextmanager
def usage_errors() -> Iterator[None]:
    """Takes what is raised inside for a mistake in the settings."""
    try:
        yield
    except (ValueError, TypeError, OSError, OverflowError) as error:
        logging.debug("%s", traceback.format_exc())  # seen with --verbosity=1
        raise UsageError(str(error)) from None


class Output:
    """Standard output, which may be closed or full before a run has said all.

    Attributes:
      error: why it could not be written, or None; what follows is then not written.
    """

    def __init__(self) -> None:
        self.error: OSError | None = None

    def tell(self, text: str) -> None:
        """Prints a text, and logs the first failure: files of the run do not depend on it."""
        try:
            print(text, flush=True)
        except OSError as error:
            self.error = error
            logging.error("Standard output cannot be written: %s.", error.strerror)
            # What is still buffered would fail again when the process ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


output = Output()
