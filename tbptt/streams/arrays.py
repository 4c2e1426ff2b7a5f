"""Reads NumPy files, `.npz` archives and `.npy` arrays, with checks before memory is allocated."""

import math
import os
import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from typing import IO, Any

import numpy as np

from tbptt.streams.files import DataError, regular_file

DAMAGED = (
    zipfile.BadZipFile, zlib.error, tokenize.TokenError, ValueError, SyntaxError, EOFError, OSError,
    NotImplementedError, RuntimeError, MemoryError, OverflowError, KeyError, TypeError,
)  # fmt: skip
LARGEST = float(np.finfo(np.float32).max)
NUMBERS = "biuf"  # kinds of NumPy types: bool, signed, unsigned and floating


class Archive(Mapping[str, np.ndarray]):
    """Reads the arrays of an `.npz` file on demand; pickled objects are never loaded.

    Args:
      path: the path of the file.
      expected: a description of what the file should hold, for messages.

    Raises:
      DataError: there is no such file, or it is no `.npz` file.
    """

    def __init__(self, path: str | os.PathLike[str], expected: str) -> None:
        self.path = str(regular_file(path, expected))
        self._expected = expected
        try:
            with zipfile.ZipFile(self.path) as archive:
                self._members = {
                    name.removesuffix(".npy"): name
                    for name in archive.namelist()
                    if name.endswith(".npy")
                }
        except DAMAGED as error:
            raise DataError(
                f"{self.path!r} is not an .npz file, or it is cut ({error}). It must be "
                f"{expected}, as np.savez writes it."
            ) from None

    def __iter__(self) -> Any:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def __getitem__(self, name: str) -> np.ndarray:
        """Reads an array; raises DataError if it is damaged, or of Python objects."""
        member = self._members[name]  # KeyError, as of any mapping
        try:
            with zipfile.ZipFile(self.path) as archive:
                with archive.open(member) as file:
                    _check_header(file, archive.getinfo(member).file_size)
                with archive.open(member) as file:
                    return np.lib.format.read_array(file, allow_pickle=False)
        except DAMAGED as error:
            raise DataError(
                f"{self.path!r}: the array {name!r} cannot be read ({error}). The file is damaged "
                f"or not {self._expected}; write it again with np.savez."
            ) from None

    def require(self, names: Sequence[str]) -> None:
        """Raises DataError, naming the missing arrays, unless the archive holds all of `names`."""
        missing = sorted(set(names) - set(self))
        if missing:
            there = ", ".join(sorted(self)) or "nothing"
            raise DataError(
                f"{self.path!r} lacks {', '.join(missing)}; it holds {there}. It must be "
                f"{self._expected}."
            )

    def numbers(self, name: str, dimensions: int, *, integers: bool = False) -> np.ndarray:
        """Reads an array and checks that it holds finite numbers.

        Raises:
          DataError: it has other dimensions, or holds something other than finite numbers; the
            message says where.
        """
        return check_numbers(f"{self.path}: {name}", self[name], dimensions, integers=integers)


def check_numbers(
    name: str, array: np.ndarray, dimensions: int, *, integers: bool = False
) -> np.ndarray:
    """Returns an array after checking its dimensions and that it holds finite numbers.

    Args:
      name: the name of the array, for the message.
      array: the array to check.
      dimensions: the number of dimensions that it must have.
      integers: whether it must hold integers.

    Raises:
      DataError: a check fails; the message says what is wrong, and where.
    """
    if array.dtype.kind not in ("iu" if integers else NUMBERS):
        raise DataError(
            f"{name} holds {array.dtype}, but must hold {'integers' if integers else 'numbers'}."
        )
    if array.ndim != dimensions:
        wanted = ", ".join(["any"] * dimensions)
        raise DataError(f"{name} has shape {list(array.shape)}, but must be [{wanted}].")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        place = np.argwhere(~np.isfinite(array))[0]
        raise DataError(
            f"{name} is {array[tuple(place)]} at {[int(k) for k in place]}, but must be finite. "
            "Leave it out, or replace the value."
        )
    if (
        array.dtype.kind == "f"
        and array.size
        and max(-float(array.min()), float(array.max())) > LARGEST
    ):
        place = np.argwhere(np.abs(array) > LARGEST)[0]
        raise DataError(
            f"{name} is {array[tuple(place)]} at {[int(k) for k in place]}, beyond what float32 "
            f"holds, {LARGEST:.3g}. Replace the value."
        )
    return array


def check_lengths(name: str, lengths: np.ndarray, total: int, least: int = 1) -> np.ndarray:
    """Returns the ends of segments with these lengths, `[P]` int64, after checking the lengths.

    Raises:
      DataError: there are no segments, one is shorter than `least` frames, or the lengths do not
        sum to `total`.
    """
    lengths = check_numbers(name, lengths, 1, integers=True).astype(np.int64)
    if len(lengths) == 0:
        raise DataError(f"{name} is empty, but there must be at least one sequence.")
    if lengths.min() < least:
        raise DataError(
            f"{name} is {lengths.min()} at {lengths.argmin()}, but must be at least {least}. Leave "
            "shorter sequences out."
        )
    if lengths.sum() != total:
        raise DataError(
            f"{name} sums to {lengths.sum()}, but there are {total} frames. The file is damaged, "
            "or the lengths are of other sequences."
        )
    return np.cumsum(lengths)


def open_array(path: str | os.PathLike[str], expected: str) -> np.ndarray:
    """Memory-maps the array of an `.npy` file.

    Raises:
      DataError: there is no such file, or it does not hold one array of numbers.
    """
    found = regular_file(path, expected)
    try:
        with found.open("rb") as file:
            _check_header(file, found.stat().st_size)
        return np.load(found, mmap_mode="r", allow_pickle=False)
    except DAMAGED as error:
        raise DataError(
            f"{str(path)!r} cannot be read ({error}). It must be {expected}, as np.save writes it."
        ) from None


def _check_header(file: IO[bytes], size: int) -> None:
    """Raises ValueError unless an array's header asks for exactly `size` bytes."""
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in read:
        raise ValueError(f"version {version} of the format is not known")
    shape, _, dtype = read[version](file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are never loaded")
    needed = file.tell() + math.prod(shape) * dtype.itemsize
    if needed != size:
        raise ValueError(f"shape {list(shape)} of {dtype} takes {needed} bytes, and it has {size}")
