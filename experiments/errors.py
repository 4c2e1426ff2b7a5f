"""Mistakes of a user, told in one line; and runs that end before they are through."""

import contextlib
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
    except (ValueError, TypeError, OSError) as error:
        logging.debug("%s", traceback.format_exc())  # seen with --verbosity=1
        raise UsageError(str(error)) from None
