"""From text to ids: reading, vocabularies, splits."""

import collections
import dataclasses
import json
import os
import pathlib
import pydoc_data.topics
import sysconfig

import numpy as np

from tbptt import checks

KINDS = ("characters", "bytes", "words")
EOS = "<eos>"
UNK = "<unk>"
ABOUT, TOKENS, ENDS = "corpus.json", "tokens.bin", "ends.bin"  # of a folder of tools/prepare.py
BOUNDARY = {"characters": "\0", "bytes": "\0", "words": EOS}  # between documents, by kind


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a UTF-8 file.

    Raises:
      ValueError: there is no such file, it is empty, or it is not UTF-8 (where and what).
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise ValueError(f"There is no file {str(path)!r}. Give the path of a UTF-8 text file.")
    data = path.read_bytes()
    if not data:
        raise ValueError(f"{str(path)!r} is empty: there is nothing to learn from it.")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{str(path)!r} is not UTF-8: byte 0x{data[error.start]:02x} at offset "
            f"{error.start}. Convert it (iconv -f latin1 -t utf-8), or train on bytes "
            "(--tokens=bytes)."
        ) from None


def python_docs() -> str:
    """Python's own documentation, the topics of `help()`, sorted by name: on every machine."""
    topics = pydoc_data.topics.topics
    return "\n".join(topics[name] for name in sorted(topics))


def python_source() -> str:
    """The standard library's `.py` files, tests left out, sorted by path."""
    library = pathlib.Path(sysconfig.get_path("stdlib"))
    left_out = {"test", "tests", "idle_test", "site-packages", "__pycache__"}
    paths = sorted(
        path
        for path in library.rglob("*.py")
        if not left_out.intersection(path.relative_to(library).parts)
    )
    texts = [path.read_text(encoding="utf-8", errors="ignore") for path in paths]
    return "\n".join(text for text in texts if text)


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The tokens a model knows; a token's id is its place.

    Attributes:
      kind: `characters`; `bytes`, the 256 of them, of UTF-8; or `words`, what stands between
        blanks, with `<eos>` at the end of every line, and `<unk>` for the rest if there is one.
      tokens: all different.
    """

    kind: str
    tokens: tuple[str, ...]

    def __post_init__(self) -> None:
        checks.check_choice("kind of tokens", self.kind, KINDS)
        if len(set(self.tokens)) != len(self.tokens):
            twice = collections.Counter(self.tokens).most_common(1)[0][0]
            raise ValueError(f"The vocabulary holds {twice!r} twice; tokens must differ.")

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def dtype(self) -> type[np.integer]:
        """The narrowest integer that holds every id."""
        return np.uint16 if len(self) <= 1 << 16 else np.int32

    @classmethod
    def of(
        cls, text: str, kind: str, max_size: int | None = None, *, boundary: bool = False
    ) -> "Vocabulary":
        """The vocabulary of a text: characters in code order, words by falling frequency.

        Args:
          text: not empty.
          kind: `characters`, `bytes` or `words`.
          max_size: of words, the most frequent ones, `<unk>` among them for the others.
          boundary: there is to be a token that stands between documents, see `boundary`.

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
            return cls(kind, tuple(chr(byte) for byte in range(256)))
        checks.check_choice("kind of tokens", kind, KINDS)
        counts = collections.Counter(split_words(text))
        words = sorted(counts, key=lambda word: (-counts[word], word))
        if max_size is not None and len(words) > max_size:
            checks.check_at_least("vocabulary size", max_size, 2)
            kept = words[:max_size]
            words = kept if UNK in kept else [*kept[:-1], UNK]
        return cls(kind, tuple(words))

    @property
    def boundary(self) -> int:
        """The id of what stands between documents: character or byte 0, or `<eos>`.

        Raises:
          ValueError: the vocabulary has none.
        """
        token = BOUNDARY[self.kind]
        if token not in self.tokens:
            raise ValueError(
                f"The vocabulary has no {token!r} to stand between documents. Build it with "
                "boundary=True."
            )
        return self.tokens.index(token)

    def encode(self, text: str) -> np.ndarray:
        """The ids of a text, one-dimensional.

        Raises:
          ValueError: a token is not in the vocabulary, and there is no `<unk>` (which token
            and on which line).
        """
        if self.kind == "bytes":
            return np.frombuffer(text.encode("utf-8"), np.uint8).astype(self.dtype)
        if self.kind == "words":
            return self._encode_words(text)
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        known = np.array([ord(token) for token in self.tokens], np.uint32)
        order = np.argsort(known)
        ids = order[np.searchsorted(known, codes, sorter=order).clip(max=len(known) - 1)]
        wrong = np.flatnonzero(known[ids] != codes)
        if wrong.size:
            self._refuse(text[wrong[0]], text.count("\n", 0, int(wrong[0])) + 1)
        return ids.astype(self.dtype)

    def decode(self, ids: np.ndarray) -> str:
        """The text of ids: what `encode` was given, for characters and for bytes of UTF-8."""
        if self.kind == "bytes":
            return bytes(int(i) for i in ids).decode("utf-8", errors="replace")
        if self.kind == "characters":
            return "".join(self.tokens[i] for i in ids)
        return " ".join(self.tokens[i] for i in ids).replace(f" {EOS} ", "\n").replace(EOS, "\n")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes JSON: `{"kind": ..., "tokens": [...]}`."""
        content = {"kind": self.kind, "tokens": list(self.tokens)}
        pathlib.Path(path).write_text(json.dumps(content, ensure_ascii=True) + "\n", "utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Vocabulary":
        """Reads what `save` wrote.

        Raises:
          ValueError: the file does not hold a vocabulary.
        """
        try:
            content = json.loads(read_text(path))
            tokens = content["tokens"]
            if not isinstance(tokens, list) or not all(isinstance(t, str) for t in tokens):
                raise TypeError("tokens must be a list of strings")
            return cls(content["kind"], tuple(tokens))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{str(path)!r} holds no vocabulary: {error}.") from None

    def _encode_words(self, text: str) -> np.ndarray:
        ids = {word: i for i, word in enumerate(self.tokens)}
        if UNK in ids:
            unknown = ids[UNK]
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
            f"vocabulary, and the vocabulary has no {UNK}. Build it from a text that holds the "
            f"{thing}, or of words with a size limit, which makes room for {UNK}."
        )


def split_words(text: str) -> list[str]:
    """Words between blanks; every end of a line is the word `<eos>`."""
    return text.replace("\n", f" {EOS} ").split()


def split(
    tokens: np.ndarray, valid_fraction: float, test_fraction: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Training, validation and test part, in this order: the test part is the end.

    Example:
      >>> [len(part) for part in split(np.arange(100), 0.2, 0.1)]
      [70, 20, 10]
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


def open_tokens(path: str | os.PathLike[str], dtype: type[np.integer] = np.uint16) -> np.ndarray:
    """Memory-maps a one-dimensional token file: `.npy`, or raw little-endian integers.

    Raises:
      ValueError: no such file, an empty one, or one of another kind.
    """
    path = pathlib.Path(path)
    if not path.is_file() or path.stat().st_size == 0:
        raise ValueError(f"There are no tokens in {str(path)!r}: no such file, or an empty one.")
    if path.suffix == ".npy":
        tokens = np.load(path, mmap_mode="r", allow_pickle=False)
    else:
        size = path.stat().st_size
        if size % np.dtype(dtype).itemsize:
            raise ValueError(
                f"{str(path)!r} has {size} bytes, not a multiple of the "
                f"{np.dtype(dtype).itemsize} bytes of a {np.dtype(dtype).name} token."
            )
        tokens = np.memmap(path, dtype, mode="r")
    return tokens


def open_corpus(folder: str | os.PathLike[str]) -> tuple[Vocabulary | None, np.ndarray, np.ndarray]:
    """What `tools/prepare.py` has written, memory-mapped.

    Returns:
      the vocabulary, None where a tokenizer of the user's made the tokens; tokens `[N]`; where
      each document ends, `[D]` int64.

    Raises:
      ValueError: the folder holds no corpus, or not the one that its `corpus.json` says.
    """
    folder = pathlib.Path(folder)
    if not (folder / ABOUT).is_file():
        raise ValueError(
            f"{str(folder)!r} holds no prepared corpus: there is no {ABOUT}. Make one, or finish "
            "it, with python -m tools.prepare."
        )
    try:
        about = json.loads((folder / ABOUT).read_text("utf-8"))
        kind, counts = about["kind"], (about["tokens"], about["documents"])
        dtype = {"uint8": np.uint8, "uint16": np.uint16, "uint32": np.uint32}[about["dtype"]]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{ABOUT} in {str(folder)!r} cannot be used: {error!r}.") from None
    parts = [open_tokens(folder / TOKENS, dtype), open_tokens(folder / ENDS, np.int64)]
    for name, part, count in zip((TOKENS, ENDS), parts, counts, strict=True):
        if len(part) != count:
            raise ValueError(
                f"{name} in {str(folder)!r} has {len(part)} entries, but {ABOUT} says {count}. "
                "The folder is damaged; prepare it again."
            )
    vocabulary = Vocabulary.load(folder / "vocabulary.json") if kind in KINDS else None
    return vocabulary, parts[0], parts[1]
