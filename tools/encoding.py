"""Encodes text as ids for `tools.prepare`, and holds the progress of a run."""

import dataclasses
import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from tbptt.streams import corpus
from tbptt.streams.files import DataError


@dataclasses.dataclass
class Place:
    """The progress of a run of `tools.prepare`, from which an interrupted run continues.

    Attributes:
      source: the number of the current file.
      offset: the number of its bytes that are done.
      tokens, documents: the numbers of tokens and documents written.
      vocabulary: tokens in the order of their ids.
      fixed: whether the vocabulary must not grow.
      sources: the arguments of the run, to compare with those of a later one.
      ended: the number of tokens up to the end of the last document.
      renumbered: whether the vocabulary is in its final order.
    """

    sources: list[Any]
    vocabulary: list[str]
    fixed: bool
    source: int = 0
    offset: int = 0
    tokens: int = 0
    documents: int = 0
    ended: int = 0
    renumbered: bool = False


class Encoder:
    """Encodes text as ids; gives new tokens new ids, unless the vocabulary is fixed."""

    def __init__(self, kind: str, place: Place) -> None:
        self._kind, self._place = kind, place
        self._ids = {token: k for k, token in enumerate(place.vocabulary)}
        self._table = np.full([0x110000 if kind == "characters" else 0], -1, np.int64)
        for token, k in self._ids.items() if kind == "characters" else ():
            self._table[ord(token)] = k
        self._function: Callable[[str], Any] | None = None
        if kind not in corpus.KINDS:
            module, colon, name = kind.partition(":")
            if not colon:
                raise DataError(
                    f"--kind ({kind!r}) must be bytes, characters, words or MODULE:FUNCTION."
                )
            sys.path.insert(0, os.getcwd())
            self._function = getattr(importlib.import_module(module), name)
        self.dtype: type[np.unsignedinteger] = {"bytes": np.uint8, "characters": np.uint16}.get(
            kind, np.uint32
        )

    def __call__(self, texts: list[str | bytes], where: str) -> tuple[np.ndarray, list[int]]:
        """Encodes texts; returns their ids, concatenated, and the number of ids of each."""
        if self._kind == "characters":  # all at once: a line of text is short
            joined = "".join(str(text) for text in texts)
            return self._characters(joined, where), [len(text) for text in texts]
        parts = [self._encode(text, where) for text in texts]
        return np.concatenate(parts), [len(part) for part in parts]

    def _encode(self, text: str | bytes, where: str) -> np.ndarray:
        if self._kind == "bytes":
            return np.frombuffer(text.encode("utf-8") if isinstance(text, str) else text, np.uint8)
        if self._function is not None:
            ids = np.asarray(self._function(str(text)))
            if ids.size == 0:
                return ids.astype(self.dtype)
            if (
                ids.ndim != 1
                or not np.issubdtype(ids.dtype, np.integer)
                or ids.min() < 0
                or ids.max() >= 1 << 32
            ):
                raise DataError(
                    f"{where}: {self._kind} must give a list of integers from 0 to 4,294,967,295."
                )
            return ids.astype(self.dtype)
        words = corpus.split_words(str(text))
        return np.fromiter((self._id(word, where) for word in words), np.uint32, len(words))

    def _characters(self, text: str, where: str) -> np.ndarray:
        codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        for code in np.unique(codes[self._table[codes] < 0]):
            self._table[code] = self._id(chr(code), where)
        return self._table[codes].astype(np.uint16)

    def _id(self, token: str, where: str) -> int:
        known = self._ids.get(token)
        if known is not None:
            return known
        if self._place.fixed:
            unknown = corpus.UNKNOWN[self._kind]
            if unknown in self._ids:
                return self._ids[unknown]
            raise DataError(f"{where}: {token!r} is not in --vocabulary, which has no {unknown}.")
        if self._kind == "characters" and len(self._ids) == 1 << 16:
            raise DataError(f"{where}: there are more than 65,536 characters. Use --kind=words.")
        self._ids[token] = len(self._ids)
        self._place.vocabulary.append(token)
        return self._ids[token]
