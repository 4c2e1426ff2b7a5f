"""Stores checkpoints in a folder: written completely or not at all, verified when they are read.

    checkpoints/step-000000001200/arrays.npz       all arrays, by name
                                  manifest.json    version, facts, sizes, checksums

A checkpoint is written under another name, which no reader looks at, flushed to the disk, and
renamed. So whatever happens meanwhile, the checkpoints that were there before stay intact.
"""

import dataclasses
import hashlib
import os
import pathlib
import shutil
import threading
import zipfile
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from tbptt import checks
from tbptt.checkpoint.manifest import MANIFEST as MANIFEST
from tbptt.checkpoint.manifest import CheckpointError as CheckpointError
from tbptt.checkpoint.manifest import LaterVersionError, manifest_of, read_manifest

ARRAYS = "arrays.npz"
PARTIAL = ".partial"  # the suffix of a checkpoint that is not completely written
DAMAGED = ".damaged"  # the suffix of a checkpoint that was found to be damaged
BLOCK = 1 << 20  # bytes that are hashed at a time


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Everything that a run needs to resume, as named arrays and facts; `snapshot` makes one.

    Attributes:
      step: the number of windows trained.
      arrays: arrays by name.
      facts: values by name, of the types that JSON can hold.
    """

    step: int
    arrays: dict[str, np.ndarray]
    facts: dict[str, Any]


def write_checkpoint(folder: str | os.PathLike[str], checkpoint: Checkpoint) -> None:
    """Writes a checkpoint to `folder`, complete and flushed to the disk, or leaves nothing there.

    Raises:
      OSError: it cannot be written. The partial files are removed.
      FileExistsError: `folder` exists already.
    """
    folder = pathlib.Path(folder)
    if folder.exists():
        raise FileExistsError(f"There is a checkpoint at {str(folder)!r} already.")
    beside = folder.with_name(folder.name + PARTIAL)
    shutil.rmtree(beside, ignore_errors=True)
    try:
        beside.mkdir(parents=True)
        with open(beside / ARRAYS, "wb") as file:
            _write_arrays(file, checkpoint.arrays)
            _make_durable(file)
        content = {
            "step": checkpoint.step,
            "facts": checkpoint.facts,
            "bytes": (beside / ARRAYS).stat().st_size,
            "sha256": digest_of_file(beside / ARRAYS),
            "arrays": {
                name: [array.dtype.name, list(array.shape)]
                for name, array in checkpoint.arrays.items()
            },
        }
        with open(beside / MANIFEST, "w", encoding="utf-8") as file:
            file.write(manifest_of(content))
            _make_durable(file)
        _make_names_durable(beside)
        beside.rename(folder)
        _make_names_durable(folder.parent)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def read_checkpoint(folder: str | os.PathLike[str]) -> Checkpoint:
    """Reads a checkpoint after verifying its checksums.

    Raises:
      CheckpointError: it is damaged, or of a later version; the message says what is wrong.
    """
    folder = pathlib.Path(folder)
    content = read_manifest(folder)
    path = folder / ARRAYS
    try:
        size = path.stat().st_size
        if size != content["bytes"]:
            raise CheckpointError(
                f"{path} has {size} bytes, but {MANIFEST} says {content['bytes']}: it is damaged."
            )
        if digest_of_file(path) != content["sha256"]:
            raise CheckpointError(f"{path} is not what was written: its checksum differs.")
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        arrays = {name: array.view(_dtype(content, name)) for name, array in arrays.items()}
    except CheckpointError:
        raise
    except Exception as error:  # the system, zipfile and NumPy raise errors of their own
        raise CheckpointError(f"{path} cannot be read: {error}.") from None
    shapes = {name: list(array.shape) for name, array in arrays.items()}
    told = {name: shape for name, (_, shape) in content["arrays"].items()}
    if shapes != told:
        name = min(name for name in {*shapes, *told} if shapes.get(name) != told.get(name))
        raise CheckpointError(
            f"{path} has {name!r} of shape {shapes.get(name)}, but {MANIFEST} says "
            f"{told.get(name)}: they are not of one checkpoint."
        )
    return Checkpoint(content["step"], arrays, content["facts"])


def _dtype(content: dict[str, Any], name: str) -> Any:
    """Returns the NumPy type of an array, as the manifest gives it."""
    if name not in content["arrays"]:
        raise CheckpointError(f"{MANIFEST} says nothing of the array {name!r}.")
    return tf.as_dtype(content["arrays"][name][0]).as_numpy_dtype


class Checkpoints:
    """Manages the checkpoints of one run: a thread writes them, and the newest few are kept.

    Attributes:
      folder: the folder that holds them.

    Example:
      >>> import tempfile
      >>> checkpoints = Checkpoints(tempfile.mkdtemp(), keep=1)
      >>> for step in (10, 20):
      ...     checkpoints.save(Checkpoint(step, {"x": np.ones(3)}, {"seed": 0}))
      >>> checkpoints.wait()
      >>> checkpoints.steps(), checkpoints.newest().arrays["x"].tolist()
      ([20], [1.0, 1.0, 1.0])
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, keep: int = 3, read_only: bool = False
    ) -> None:
        """Opens the checkpoints in a folder, which need not exist yet.

        Args:
          folder: the folder that holds them. Only one process at a time may write to it.
          keep: the number of checkpoints to keep.
          read_only: whether to leave all files as they are, because another process writes.
        """
        checks.check_at_least("keep", keep, 1)
        self.folder = pathlib.Path(folder)
        self._keep = keep
        self._writer: threading.Thread | None = None
        self._error: Exception | None = None
        self._read_only = read_only
        leftovers = [] if read_only else self.folder.glob(f"*{PARTIAL}")  # of a run that was killed
        for left in leftovers:
            shutil.rmtree(left, ignore_errors=True)

    def steps(self) -> list[int]:
        """Returns the steps of the checkpoints in the folder, damaged ones included, in order."""
        names = (path.name.partition("-") for path in self.folder.glob("step-*"))
        return sorted(int(number) for _, _, number in names if number.isdecimal())

    def path(self, step: int) -> pathlib.Path:
        """Returns the folder of the checkpoint of a step."""
        return self.folder / f"step-{step:012}"

    def save(self, checkpoint: Checkpoint) -> None:
        """Starts writing a checkpoint in a thread, after waiting for the one before it.

        Only one copy of the run is in memory at a time. The arrays belong to the writer from now
        on. `error` returns an error of the writer. With `read_only` nothing is written.
        """
        if self._read_only:
            return
        self.wait()
        self._writer = threading.Thread(target=self._write, args=(checkpoint,), name="checkpoint")
        self._writer.start()

    @property
    def writing(self) -> bool:
        """Whether a checkpoint is being written now."""
        return self._writer is not None and self._writer.is_alive()

    def wait(self) -> None:
        """Waits until no checkpoint is being written."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None

    def error(self) -> Exception | None:
        """Returns the error that occurred since the last call of `error`, or None."""
        error, self._error = self._error, None
        return error

    def newest(self) -> Checkpoint | None:
        """Reads the newest intact checkpoint, or returns None if there is no checkpoint.

        Newer ones that are damaged are logged and renamed.

        Raises:
          CheckpointError: there are some, and all are damaged, or one is of a later version.
        """
        problems: dict[int, CheckpointError] = {}
        for step in reversed(self.steps()):
            try:
                found = read_checkpoint(self.path(step))
            except LaterVersionError:
                raise  # nothing is wrong with it
            except CheckpointError as error:
                problems[step] = error
            else:
                for damaged, problem in problems.items():
                    logging.warning(
                        "The checkpoint of window %d cannot be used: %s", damaged, problem
                    )
                    if not self._read_only:
                        path = self.path(damaged)
                        aside = path.with_name(path.name + DAMAGED)
                        shutil.rmtree(aside, ignore_errors=True)
                        path.rename(aside)
                return found
        if problems:
            told = " ".join(map(str, problems.values()))
            raise CheckpointError(f"No checkpoint in {str(self.folder)!r} can be used. {told}")
        return None

    def _write(self, checkpoint: Checkpoint) -> None:
        try:
            path = self.path(checkpoint.step)
            if not path.exists():  # it exists after a restart that has trained no window yet
                write_checkpoint(path, checkpoint)
            for step in self.steps()[: -self._keep]:
                old = self.path(step)
                old.rename(old.with_name(old.name + PARTIAL))  # if interrupted, it is not "damaged"
                shutil.rmtree(old.with_name(old.name + PARTIAL))
        except Exception as error:
            self._error = error


def _write_arrays(file: Any, arrays: dict[str, np.ndarray]) -> None:
    """Writes arrays as `np.savez` does, but without copying any array or a part of one.

    Types that NumPy does not know by itself are written as integers: bfloat16 as its bits.
    """
    with zipfile.ZipFile(file, "w") as archive:  # not compressed
        for name, array in arrays.items():
            plain = array.view(f"u{array.itemsize}") if array.dtype.kind == "V" else array
            plain = np.ascontiguousarray(plain).reshape(plain.shape)  # 0 dimensions stay 0
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                header = np.lib.format.header_data_from_array_1_0(plain)
                np.lib.format.write_array_header_1_0(entry, header)
                entry.write(plain.reshape(-1).view(np.uint8).data)


def digest_of_file(path: pathlib.Path) -> str:
    """Returns the SHA-256 of a file, which is read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _make_durable(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _make_names_durable(folder: pathlib.Path) -> None:
    """Makes renames in a folder durable, by flushing the folder itself to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
