"""`Lock`: a lock file that reserves a run's folder for one process."""

import fcntl
import os
import pathlib
import socket
import weakref

from absl import logging

from tbptt.experiment.errors import UsageError

LOCK_FILE = "lock"


class Lock:
    """Locks a folder for this process; the system frees it when the process ends, however it ends.

    Attributes:
      release: a function that frees the folder for other processes.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        """Locks `folder`; raises UsageError that names the process if another has locked it."""
        self._path = folder / LOCK_FILE
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        self.release = weakref.finalize(self, os.close, self._file)  # or with this object
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(self._file, 1000).decode("utf-8", "replace").strip()
            self.release()
            raise UsageError(
                f"{str(folder)!r} is in use by {owner or 'another process'}. Wait until it ends, "
                "or choose another --logdir."
            ) from None
        try:
            os.truncate(self._file, 0)
            os.write(self._file, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        except OSError as error:  # the lock holds without its owner's name
            logging.warning("%s cannot be written: %s.", self._path, error.strerror)

    def check(self) -> None:
        """Raises UsageError if the lock file was removed or replaced."""
        try:
            fine = os.path.samestat(os.stat(self._path), os.fstat(self._file))
        except OSError:
            fine = False
        if not fine:
            raise UsageError(
                f"{str(self._path.parent)!r} was removed or replaced while the run wrote to it. "
                "Nothing more is written. Run the same command again to start anew."
            )
