"""Opens prepared corpora: token files, and folders that `tools/prepare.py` has written."""

import dataclasses
import hashlib
import os
import pathlib

import numpy as np

from tbptt.streams.arrays import open_array
from tbptt.streams.corpus import KINDS, Vocabulary
from tbptt.streams.files import DataError, read_json, regular_file

ABOUT, TOKENS, ENDS, VOCABULARY = "corpus.json", "tokens.bin", "ends.bin", "vocabulary.json"
CHECKED = 1 << 28  # bytes of tokens that are compared with their SHA-256 whenever they are opened


def open_tokens(path: str | os.PathLike[str], dtype: type[np.integer] = np.uint16) -> np.ndarray:
    """Memory-maps a one-dimensional token file: `.npy`, or raw little-endian integers.

    Raises:
      DataError: the file does not exist, is empty, or is of another kind.
    """
    wanted = np.dtype(dtype)
    found = regular_file(path, f"a file of {wanted.name} tokens")
    if found.suffix == ".npy":
        return open_array(found, "one array of tokens")
    size = found.stat().st_size
    if size % wanted.itemsize:
        raise DataError(
            f"{str(path)!r} has {size} bytes, not a multiple of the {wanted.itemsize} bytes of a "
            f"{wanted.name} token."
        )
    return np.memmap(found, wanted, mode="r")


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A corpus that `tools/prepare.py` has written, memory-mapped.

    Attributes:
      vocabulary: the vocabulary; None if a tokenizer of the user's made the tokens.
      tokens: `[N]` integers.
      ends: `[D]` int64, the end of each document.
      by_frequency: whether ids are sorted by frequency, the most frequent token having id 0, as
        adaptive and sampled softmax need: words of `tools.prepare` since version 2 of
        `corpus.json`.
    """

    vocabulary: Vocabulary | None
    tokens: np.ndarray
    ends: np.ndarray
    by_frequency: bool


def open_corpus(folder: str | os.PathLike[str]) -> Corpus:
    """Opens a prepared corpus, memory-mapped, so that a corpus of any size opens at once.

    Counts and vocabulary are compared with `corpus.json`; up to 256 MiB of tokens are too. Ids of
    a larger corpus are checked as they are read.

    Raises:
      DataError: the folder holds no corpus, or not the one that its `corpus.json` describes.
    """
    folder = pathlib.Path(folder)
    if not (folder / ABOUT).is_file():
        raise DataError(
            f"{str(folder)!r} holds no prepared corpus: there is no {ABOUT}. Make one, or finish "
            "it, with python -m tools.prepare."
        )
    again = "The folder is damaged; prepare it again with python -m tools.prepare."
    about = read_json(folder / ABOUT, "what tools.prepare has written")
    try:
        version, kind, counts = (
            about["version"],
            about["kind"],
            (about["tokens"], about["documents"]),
        )
        dtype = {"uint8": np.uint8, "uint16": np.uint16, "uint32": np.uint32}[about["dtype"]]
        digest = str(about["sha256"])
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{ABOUT} in {str(folder)!r} cannot be used: {error.args[0]!r} is missing or wrong. "
            f"{again}"
        ) from None
    if version not in (1, 2):
        raise DataError(
            f"{ABOUT} in {str(folder)!r} is of version {version!r}, and this program knows 1 and 2."
            " Prepare the corpus with this program."
        )
    parts = [open_tokens(folder / TOKENS, dtype), open_tokens(folder / ENDS, np.int64)]
    for name, part, count in zip((TOKENS, ENDS), parts, counts, strict=True):
        if len(part) != count:
            raise DataError(
                f"{name} in {str(folder)!r} has {len(part)} entries, but {ABOUT} says {count}. "
                f"{again}"
            )
    if sum(part.nbytes for part in parts) <= CHECKED and digest_of(folder) != digest:
        raise DataError(f"{TOKENS} or {ENDS} in {str(folder)!r} was changed. {again}")
    vocabulary = None
    if kind in KINDS:
        if not (folder / VOCABULARY).is_file():
            raise DataError(f"{str(folder)!r} has lost its {VOCABULARY}. {again}")
        vocabulary = Vocabulary.load(folder / VOCABULARY)
        if vocabulary.kind != kind or vocabulary.sha256 != about.get(
            "vocabulary", vocabulary.sha256
        ):
            raise DataError(
                f"{VOCABULARY} in {str(folder)!r} is of another corpus: its ids mean other tokens. "
                f"{again}"
            )
    return Corpus(vocabulary, parts[0], parts[1], by_frequency=version > 1 and kind == "words")


def digest_of(folder: pathlib.Path) -> str:
    """Returns the SHA-256 of a prepared corpus: of its tokens, then of the ends of documents."""
    digest = hashlib.sha256()
    for name in (TOKENS, ENDS):
        with (folder / name).open("rb") as file:
            while block := file.read(4 << 20):
                digest.update(block)
    return digest.hexdigest()
