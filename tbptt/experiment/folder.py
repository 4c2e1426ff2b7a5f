"""The folder of a run: locks it, reads and writes settings and result, refuses other runs."""

import dataclasses
import json
import math
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

from absl import logging

from tbptt.distribution import Replicas
from tbptt.experiment.errors import UsageError, usage_errors
from tbptt.experiment.lock import LOCK_FILE, Lock
from tbptt.experiment.settings import Options, Settings, decisive, digest
from tbptt.streams.files import write_whole

SETTINGS_FILE = "settings.json"
RESULT_FILE = "result.json"
RESTARTED_FILE = "restarted"  # the run in the folder was begun by --restart
PARTIAL = ".partial"  # the suffix of a file that is not completely written

Result = dict[str, Any]


class FinishedError(UsageError):
    """Raised when the run in a folder is finished; `result` is the content of its result.json."""

    def __init__(self, folder: pathlib.Path, result: Result) -> None:
        super().__init__(
            f"The run in {str(folder)!r} is finished. Use --restart to run it again; it is then "
            "moved aside."
        )
        self.result = result


class Claim:
    """Locks the folder of a run for this process, inside a `with` statement.

    If several processes train together, the chief locks the folder, and only the chief writes. An
    unfinished run with the same settings continues. With --restart the folder is first moved aside,
    unless --restart itself began the run in it and that run is not finished.

    Attributes:
      folder: the folder, with its settings.json and the files of earlier processes of this run.
      options, replicas, data: the arguments of the constructor.
      writes: whether this process writes to the folder.
    """

    def __init__(
        self,
        settings: Settings,
        options: Options,
        replicas: Replicas | None = None,
        *,
        data: str = "",
    ) -> None:
        """Prepares to lock the folder of a run; `with` locks it.

        Args:
          settings: compared with the settings of the run in the folder.
          options: name the folder, and say whether to restart.
          replicas: the devices that train; None: this process alone.
          data: a fingerprint of the data, see `data_of`; empty: the run reads no data.
        """
        self.options, self.folder, self.data = options, options.folder, data
        self.replicas = replicas or Replicas()
        self.writes = self.replicas.is_chief
        self._settings = settings
        self._lock: Lock | None = None

    def __enter__(self) -> "Claim":
        """Locks the folder, or raises FinishedError or UsageError before anything is changed."""
        with usage_errors():
            there = check_folder(self.folder, self._settings)
            finished = read_result(self.folder) if there else None
            begun = begun_by_restart(self.folder, finished is not None)
            restart = self.options.restart and not begun
            if finished is not None and not restart:
                self._check_same_data(finished)
                raise FinishedError(self.folder, finished)
            if not self.writes:
                return self
            if restart and there:
                Lock(self.folder).release()
                move_aside(self.folder)
            elif self.options.restart and there:
                logging.info(
                    "The run in %s was begun by --restart and is not finished: it goes on.",
                    self.folder,
                )
            make_folder(self.folder)
            self._lock = Lock(self.folder)
            try:
                if self.options.restart:
                    mark_restarted(self.folder)
                values = {"experiment": self._settings.experiment}
                values |= dataclasses.asdict(self._settings)
                write_file(self.folder / SETTINGS_FILE, json.dumps(values, indent=2))
            except BaseException:
                self._lock.release()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.release()

    def check(self) -> None:
        """Raises UsageError if the folder was removed or replaced while the run used it."""
        if self._lock is not None:
            self._lock.check()

    def _check_same_data(self, finished: Result) -> None:
        if finished.get("data", self.data) != self.data:
            raise UsageError(
                f"The run in {str(self.folder)!r} is finished, but its data have changed since. "
                "Use --restart to run it again on the data as they are now, or choose another "
                "--logdir."
            )


def mark_restarted(folder: pathlib.Path) -> None:
    """Writes a file that says that --restart began the run in a folder, and which launcher did."""
    write_file(folder / RESTARTED_FILE, os.environ.get("TBPTT_LAUNCH", ""))


def begun_by_restart(folder: pathlib.Path, finished: bool) -> bool:
    """Returns whether --restart began the run in a folder, so that --restart must continue it.

    A finished run is begun anew, except by the launcher that ran it, which may start its workers
    again.
    """
    path = folder / RESTARTED_FILE
    if not path.is_file():
        return False
    launch = os.environ.get("TBPTT_LAUNCH")
    return not finished or (launch is not None and path.read_text("utf-8").strip() == launch)


def make_folder(folder: pathlib.Path) -> None:
    """Creates a folder and its parents; raises UsageError if it cannot."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"--logdir ({str(folder)!r}) cannot be made: {error.strerror}. Choose another one."
        ) from None


def move_aside(folder: pathlib.Path) -> None:
    """Renames a folder to the first of `folder.1`, `folder.2`, ... that is free."""
    aside = next(
        path
        for number in range(1, sys.maxsize)
        if not (path := folder.with_name(f"{folder.name}.{number}")).exists()
    )
    folder.rename(aside)
    logging.info("The earlier run of these settings is now in %s.", aside)


def check_folder(folder: pathlib.Path, settings: Settings) -> bool:
    """Returns True if the folder holds a run with these settings, False if it is new or empty.

    Raises:
      UsageError: it holds another run, or files that do not belong to a run.
    """
    refuse_foreign(folder, lambda name: name in (LOCK_FILE, RESTARTED_FILE))
    there = read_settings(folder)
    if there is None:
        return False
    experiment = there.pop("experiment", settings.experiment)
    if experiment != settings.experiment:
        raise UsageError(
            f"{str(folder)!r} holds a run of {experiment!r}, and this is {settings.experiment!r}. "
            "Choose another --logdir."
        )
    here = decisive(settings)
    shown = set(dataclasses.asdict(settings)) - set(here)
    other = [
        f"{name}={there.get(name)!r} there, {here.get(name)!r} here"
        for name in sorted({*there, *here} - shown)
        if there.get(name) != here.get(name)
    ]
    if other:
        more = f"; and {len(other) - 5} more" if len(other) > 5 else ""
        raise UsageError(
            f"{str(folder)!r} holds a run with other settings ({'; '.join(other[:5])}{more}). "
            "Choose another --logdir, or give the same settings."
        )
    return True


def refuse_foreign(folder: pathlib.Path, ours: Callable[[str], bool]) -> None:
    """Raises UsageError if a folder holds files but no run; files named by `ours` do not count."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UsageError(f"--logdir ({str(folder)!r}) is a file. Choose a folder.")
    if (folder / SETTINGS_FILE).exists():
        return
    names = sorted(
        path.name for path in folder.iterdir() if not ours(path.name.removesuffix(PARTIAL))
    )
    names = [name for name in names if name != SETTINGS_FILE + PARTIAL]
    if names:
        more = ", ..." if len(names) > 3 else ""
        raise UsageError(
            f"{str(folder)!r} holds files ({', '.join(names[:3])}{more}) and no run. Choose a new "
            "or an empty folder as --logdir."
        )


def read_settings(folder: pathlib.Path) -> dict[str, Any] | None:
    """Returns the settings of the run in a folder, or None if there are none.

    Raises:
      UsageError: they cannot be read.
    """
    return read_object(
        folder / SETTINGS_FILE,
        f"{SETTINGS_FILE} in {str(folder)!r} cannot be read, so whose run that is cannot be told. "
        "Choose another --logdir.",
    )


def read_result(folder: pathlib.Path) -> Result | None:
    """Returns the result of the run in a folder, or None if it is not finished.

    Raises:
      UsageError: it cannot be read.
    """
    return read_object(
        folder / RESULT_FILE,
        f"{RESULT_FILE} in {str(folder)!r} cannot be read, so whether the run is finished cannot "
        "be told. Remove that file to go on from the last checkpoint, or use --restart after it.",
    )


def read_object(path: pathlib.Path, message: str) -> dict[str, Any] | None:
    """Returns the JSON object in a file, or None if there is no file.

    Raises:
      UsageError: it holds something else: `message`.
    """
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text("utf-8"), parse_constant=_no_constant)
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise UsageError(message)
    return content


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON.")


def write_result(settings: Settings, claim: Claim, **result: Any) -> Result:
    """Writes `result.json` and returns its content.

    All processes of the run wait here for each other, so that none ends while another still works.

    Raises:
      UsageError: it cannot be written.
    """
    written = {**result, "settings": digest(settings)}
    if claim.data:
        written["data"] = claim.data
    for name, value in written.items():
        if isinstance(value, float) and not math.isfinite(value):
            written[name] = None  # JSON has no infinity
    claim.replicas.any(True)
    if claim.writes:
        write_file(claim.folder / RESULT_FILE, json.dumps(written, allow_nan=False))
    return written


def write_file(path: pathlib.Path, content: str | bytes) -> None:
    """Writes a small file completely or not at all; a newline is added to text.

    Raises:
      UsageError: it cannot be written. The earlier file is then unchanged.
    """
    try:
        write_whole(path, f"{content}\n" if isinstance(content, str) else content)
    except OSError as error:
        raise UsageError(
            f"{str(path)!r} cannot be written: {error.strerror}. Make room or choose another "
            "--logdir, and give the same command again."
        ) from None
