"""Text corpora: tokens, vocabularies, and the split into training, validation and test part."""

import collections
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import pydoc_data.topics
import sysconfig
from typing import Any, TypeVar

import numpy as np

from tbptt import checks
from tbptt.streams.files import DataError, read_json, write_whole

KINDS = ("characters", "bytes", "words")
EXPECTED = 'a vocabulary, {"kind": "words", "tokens": ["a", "b"]}'
EOS = "<eos>"
UNK = "<unk>"
UNKNOWN = {"characters": "\ufffd", "words": UNK}  # the token that replaces unknown ones, by kind
BOUNDARY = {"characters": "\0", "bytes": "\0", "words": EOS}  # between documents, by kind


def python_docs() -> str:
    """Returns Python's own documentation, the topics of `help()`: text that every machine has."""
    topics = pydoc_data.topics.topics
    return "\n".join(topics[name] for name in sorted(topics))


def python_source() -> str:
    """Returns the text of the standard library's `.py` files, without tests, sorted by path."""
    library = pathlib.Path(sysconfig.get_path("stdlib"))
    left_out = {"test", "tests", "idle_test", "site-packages", "__pycache__"}
    paths = sorted(
        path
        for path in library.rglob("*.py")
        if not left_out.intersection(path.relative_to(library).parts)
    )
    texts = [path.read_text(encoding="utf-8", errors="ignore") for path in paths]
    return "\n".join(text for text in texts if text)


BYTES = tuple(chr(byte) for byte in range(256))


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Maps tokens to ids and back; a token's id is its index in `tokens`.

    Attributes:
      kind: `characters`; `bytes`, the 256 of them; or `words`, separated by blanks, with `<eos>` at
        the end of every line.
      tokens: the tokens, all different. `<unk>` among words, or U+FFFD among characters, stands for
        all tokens that are not in the vocabulary.
    """

    kind: str
    tokens: tuple[str, ...]

    def __post_init__(self) -> None:
        checks.check_choice("kind of tokens", self.kind, KINDS)
        if len(set(self.tokens)) != len(self.tokens):
            twice = collections.Counter(self.tokens).most_common(1)[0][0]
            raise ValueError(f"The vocabulary holds {twice!r} twice; tokens must differ.")
        if self.kind != "words" and any(len(token) != 1 for token in self.tokens):
            wrong = next(token for token in self.tokens if len(token) != 1)
            raise ValueError(
                f"The vocabulary of {self.kind} holds {wrong!r}, but each must be one character."
            )
        if self.kind == "bytes" and self.tokens != BYTES:
            raise ValueError("A vocabulary of bytes must hold all 256 of them, in their order.")

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def dtype(self) -> type[np.integer]:
        """The narrowest integer type that holds every id."""
        return np.uint16 if len(self) <= 1 << 16 else np.int32

    @classmethod
    def of(
        cls, text: str, kind: str, max_size: int | None = None, *, boundary: bool = False
    ) -> "Vocabulary":
        """Builds the vocabulary of a text: characters in code order, words by falling frequency.

        Args:
          text: not empty.
          kind: `characters`, `bytes` or `words`.
          max_size: the largest number of words: the most frequent ones, and `<unk>` for the others.
          boundary: whether to add a token that stands between documents, see `boundary`.

        Example:
          >>> Vocabulary.of("b a b", "words").tokens
          ('b', 'a')
        """
        if kind == "characters":
            if boundary and BOUNDARY[kind] in text:
                raise ValueError(
                    "The text holds the character 0, which stands between documents. Remove it."
                )
            return cls(kind, tuple(sorted({*text, *(BOUNDARY[kind] if boundary else "")})))
        if kind == "bytes":
            return cls(kind, BYTES)
        checks.check_choice("kind of tokens", kind, KINDS)
        counts = collections.Counter(split_words(text))
        words = sorted(counts, key=lambda word: (-counts[word], word))
        needed = [EOS] if boundary else []
        if max_size is not None and len({*words, *needed}) > max_size:
            needed.append(UNK)
            checks.check_at_least("vocabulary size", max_size, 1 + len(needed))
            others = [word for word in words if word not in needed]
            left_out = set(others[max_size - len(needed) :])
            words = [word for word in words if word not in left_out]
        return cls(kind, (*words, *(word for word in needed if word not in words)))

    @property
    def boundary(self) -> int:
        """The id of the token between documents: character or byte 0, or `<eos>`.

        Raises:
          ValueError: the vocabulary has no such token.
        """
        token = BOUNDARY[self.kind]
        if token not in self.tokens:
            raise ValueError(
                f"The vocabulary has no {token!r} to stand between documents, so it is not of "
                "documents. Build it with boundary=True, or prepare the corpus again."
            )
        return self.tokens.index(token)

    @property
    def unknown(self) -> int | None:
        """The id of the token that replaces unknown ones, or None if there is no such token."""
        return self._ids.get(UNKNOWN.get(self.kind, ""))

    def with_unknown(self) -> "Vocabulary":
        """Returns the vocabulary with a token for unknown ones, added at the end if need be."""
        if self.kind == "bytes" or self.unknown is not None:
            return self
        return Vocabulary(self.kind, (*self.tokens, UNKNOWN[self.kind]))

    def encode(self, text: str | bytes) -> np.ndarray:
        """Encodes a text, or bytes if the kind is `bytes`, as a one-dimensional array of ids.

        Raises:
          ValueError: a token is not in the vocabulary, which has no token for unknown ones; the
            message names token and line.
        """
        if self.kind == "bytes":
            data = text.encode("utf-8") if isinstance(text, str) else text
            return np.frombuffer(data, np.uint8).astype(self.dtype)
        if isinstance(text, bytes):
            raise TypeError(f"These are bytes, and the vocabulary is of {self.kind}. Decode them.")
        if self.kind == "words":
            return self._encode_words(text)
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        known, order = self._known
        ids = order[np.searchsorted(known, codes, sorter=order).clip(max=len(known) - 1)]
        wrong = np.flatnonzero(known[ids] != codes)
        if wrong.size:
            if self.unknown is None:
                self._refuse(text[wrong[0]], text.count("\n", 0, int(wrong[0])) + 1)
            ids[wrong] = self.unknown
        return ids.astype(self.dtype)

    def decode(self, ids: np.ndarray) -> str:
        """Decodes ids to text; inverts `encode` for characters and for bytes of UTF-8."""
        if self.kind == "bytes":
            return bytes(int(i) for i in ids).decode("utf-8", errors="replace")
        if self.kind == "characters":
            return "".join(self.tokens[i] for i in ids)
        return " ".join(self.tokens[i] for i in ids).replace(f" {EOS} ", "\n").replace(EOS, "\n")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the vocabulary to a JSON file, completely or not at all."""
        write_whole(path, self.to_json() + "\n")

    def to_json(self) -> str:
        """Returns the vocabulary as JSON, `{"kind": ..., "tokens": [...]}`."""
        return json.dumps({"kind": self.kind, "tokens": list(self.tokens)}, ensure_ascii=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Vocabulary":
        """Reads a vocabulary from the file that `save` wrote.

        Raises:
          DataError: there is no such file, or it does not hold a vocabulary.
        """
        return cls.from_json(read_json(path, EXPECTED), repr(str(path)))

    @classmethod
    def from_json(cls, content: Any, source: str) -> "Vocabulary":
        """Returns the vocabulary of a JSON object, `{"kind": ..., "tokens": [...]}`.

        Raises:
          DataError: it is no vocabulary; the message begins with `source`.
        """
        tokens = content.get("tokens") if isinstance(content, dict) else None
        if not isinstance(tokens, list) or not all(isinstance(t, str) for t in tokens):
            raise DataError(f"{source} has no list of tokens. It must be {EXPECTED}.")
        if any("\ud800" <= letter <= "\udfff" for token in tokens for letter in token):
            raise DataError(f"{source} holds half of a surrogate pair, which is no character.")
        try:
            return cls(str(content.get("kind")), tuple(tokens))
        except ValueError as error:
            raise DataError(f"{source} is no vocabulary: {error}") from None

    @property
    def sha256(self) -> str:
        """The SHA-256 of kind and tokens, in order, to recognise a vocabulary by."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @functools.cached_property
    def _known(self) -> tuple[np.ndarray, np.ndarray]:
        """The codes of all characters, and the order that sorts them."""
        known = np.array([ord(token) for token in self.tokens], np.uint32)
        return known, np.argsort(known)

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        return {token: i for i, token in enumerate(self.tokens)}

    def _encode_words(self, text: str) -> np.ndarray:
        ids = self._ids
        unknown = self.unknown
        if unknown is not None:
            return np.array([ids.get(word, unknown) for word in split_words(text)], self.dtype)
        try:
            return np.array([ids[word] for word in split_words(text)], self.dtype)
        except KeyError:
            for number, line in enumerate(text.split("\n"), start=1):
                for word in line.split():
                    if word not in ids:
                        self._refuse(word, number)
            self._refuse(EOS, 1)
            raise

    def _refuse(self, token: str, line: int) -> None:
        thing = "word" if self.kind == "words" else "character"
        raise ValueError(
            f"The {thing} {token!r} on line {line} is not among the {len(self)} tokens of the "
            f"vocabulary, and the vocabulary has no {UNKNOWN[self.kind]} for others. Build it from "
            f"a text that holds the {thing}, or of words with a size limit, which makes room for "
            f"{UNK}."
        )


def split_words(text: str) -> list[str]:
    """Splits a text into words at blanks; every end of a line becomes the word `<eos>`."""
    return text.replace("\n", f" {EOS} ").split()


Tokens = TypeVar("Tokens", np.ndarray, str, list[str])


def split(
    tokens: Tokens, valid_fraction: float, test_fraction: float
) -> tuple[Tokens, Tokens, Tokens]:
    """Splits tokens into training, validation and test part, in this order: test is the end.

    Example:
      >>> [len(part) for part in split(np.arange(100), 0.2, 0.1)]
      [70, 20, 10]

    Raises:
      ValueError: one of the parts would be empty.
    """
    for name, fraction in (("valid", valid_fraction), ("test", test_fraction)):
        checks.check_between(f"{name}_fraction", fraction, 0.0, 1.0)
    test = len(tokens) - round(len(tokens) * test_fraction)
    valid = test - round(len(tokens) * valid_fraction)
    if valid <= 0:
        raise ValueError(
            f"valid_fraction ({valid_fraction}) and test_fraction ({test_fraction}) leave "
            "nothing to train on. Make them smaller."
        )
    return tokens[:valid], tokens[valid:test], tokens[test:]


def split_text(text: str, kind: str, valid_fraction: float, test_fraction: float) -> list[str]:
    """Splits a text into training, validation and test part between two tokens; see `split`.

    Example:
      >>> split_text("a b c d e f", "words", 0.2, 0.2)
      ['a b c d', 'e', 'f']
    """
    if kind == "words":  # joined again, they are the same words
        parts = split(split_words(text), valid_fraction, test_fraction)
        return [" ".join(part) for part in parts]
    return list(split(text, valid_fraction, test_fraction))
