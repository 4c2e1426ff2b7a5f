"""The folder of a run: whose it is, and what is written to it whole or not at all."""

import dataclasses
import fcntl
import json
import math
import os
import pathlib
import socket
import sys
import weakref
from collections.abc import Mapping
from typing import Any

from absl import logging

from experiments.errors import UsageError, usage_errors
from experiments.settings import Options, Settings, digest
from tbptt.distribution import Replicas

SETTINGS_FILE = "settings.json"
RESULT_FILE = "result.json"
LOCK_FILE = "lock"

Result = dict[str, Any]


class Claim:
    """The folder of a run, this process's alone until the run is through or the process ends.

    Where several processes are one run, it is the chief's, and only the chief writes.

    Attributes:
      folder: holds the settings, and whatever an earlier process of this run has left.
      options, replicas: as given.
      writes: whether this process is the one that writes.
    """

    def __init__(
        self, settings: Settings, options: Options, replicas: Replicas | None = None
    ) -> None:
        """Raises UsageError: the folder holds another run, a finished one, or another process's."""
        self.options, self.folder = options, options.folder
        self.replicas = replicas or Replicas()
        self.writes = self.replicas.is_chief
        self._lock: Lock | None = None
        if not self.writes:
            return
        values = dataclasses.asdict(settings)
        with usage_errors():
            if (self.folder / SETTINGS_FILE).exists():
                refuse_other_settings(self.folder, values)
                if options.restart:
                    Lock(self.folder).release()
                    _move_aside(self.folder)
                elif (self.folder / RESULT_FILE).exists():
                    raise UsageError(
                        f"The run in {str(self.folder)!r} is finished. Use --restart to run it "
                        "again; it is then moved aside."
                    )
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = Lock(self.folder)
            write_file(self.folder / SETTINGS_FILE, json.dumps(values, indent=2))

    def check(self) -> None:
        """Raises UsageError: the folder was removed or replaced under the run."""
        if self._lock is not None:
            self._lock.check()

    def release(self) -> None:
        """The run is through."""
        if self._lock is not None:
            self._lock.release()


class Lock:
    """A file that one process has locked; the lock ends with the process, however that ends.

    Attributes:
      release: a function: another process may have it.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        """Raises UsageError: another process has it (which)."""
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
        os.truncate(self._file, 0)
        os.write(self._file, f"process {os.getpid()} on {socket.gethostname()}\n".encode())

    def check(self) -> None:
        """Raises UsageError: the file is not there any more, or another one is."""
        try:
            fine = os.path.samestat(os.stat(self._path), os.fstat(self._file))
        except OSError:
            fine = False
        if not fine:
            raise UsageError(
                f"{str(self._path.parent)!r} was removed or replaced while the run wrote to it. "
                "Nothing more is written. Run the same command again to start anew."
            )


def _move_aside(folder: pathlib.Path) -> None:
    aside = next(
        path
        for number in range(1, sys.maxsize)
        if not (path := folder.with_name(f"{folder.name}.{number}")).exists()
    )
    folder.rename(aside)
    logging.info("The earlier run of these settings is now in %s.", aside)


def refuse_other_settings(logdir: pathlib.Path, values: Mapping[str, Any]) -> None:
    try:
        there = json.loads((logdir / SETTINGS_FILE).read_text("utf-8"))
    except json.JSONDecodeError:
        raise UsageError(
            f"{SETTINGS_FILE} in {str(logdir)!r} cannot be read, so whose run that is cannot be "
            "told. Choose another --logdir."
        ) from None
    other = [
        f"{name}={there.get(name)!r} there, {values.get(name)!r} here"
        for name in sorted({*there, *values})
        if there.get(name) != values.get(name)
    ]
    if other:
        raise UsageError(
            f"{str(logdir)!r} holds a run with other settings ({'; '.join(other)}). Choose "
            "another --logdir, or give the same settings."
        )


def write_result(settings: Settings, claim: Claim, **result: Any) -> Result:
    """Writes `result.json` and the same line on standard output; returns it.

    Waits for the other processes of the run: none may leave while another one still works.
    """
    written = {**result, "settings": digest(settings)}
    for name, value in written.items():
        if isinstance(value, float) and not math.isfinite(value):
            written[name] = None  # JSON has no infinity
    claim.replicas.any(True)
    if claim.writes:
        write_json(claim.folder / RESULT_FILE, written)
    claim.release()
    return written


def write_json(path: pathlib.Path, content: Result) -> None:
    """Writes a file, and the same line on standard output."""
    line = json.dumps(content, allow_nan=False)
    write_file(path, line)
    print(line, flush=True)


def write_file(path: pathlib.Path, text: str) -> None:
    """Writes a small file, whole or not at all."""
    beside = path.with_name(f"{path.name}.partial")
    beside.write_text(text + "\n", "utf-8")
    os.replace(beside, path)
