"""Text of any size into memory-mapped tokens, in one pass and in bounded memory.

    python -m tools.prepare --out=corpus --kind=characters a.txt b.txt
    python -m tools.prepare --out=corpus --kind=words --lines names.txt
    python -m tools.prepare --out=corpus --kind=mine.tokenizers:encode speeches.jsonl
    python -m experiments.language_model --prepared=corpus

Every file is a document; with --lines every line of it is, blank ones left out; a `.jsonl` file
has one in every line, its `text`. --kind is bytes, characters, words, or MODULE:FUNCTION, a
function from a text to integers below 2**32. Ids of characters and words are given in the order
in which they appear; with --vocabulary, a file that such a run has written, they are those of the
file, and words that it lacks become <unk>, if it has that.

The folder gets `tokens.bin`, little-endian integers; `ends.bin`, int64, where each document ends;
`vocabulary.json`; and, when all is done, `corpus.json` with counts and a fingerprint. A run that
was interrupted goes on where it was with the same command.
"""

import dataclasses
import hashlib
import importlib
import json
import os
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import tqdm
from absl import app, flags

from tbptt.streams import corpus, documents

OUT = flags.DEFINE_string("out", None, "Folder to write.")
KIND = flags.DEFINE_string("kind", "characters", "bytes, characters, words or MODULE:FUNCTION.")
LINES = flags.DEFINE_bool("lines", False, "Every line is a document.")
VOCABULARY = flags.DEFINE_string("vocabulary", None, "vocabulary.json with ids to use.")

BLOCK = 4 << 20  # bytes read at a time
SAVE_EVERY = 64 << 20  # bytes between the places that an interrupted run goes on from
STATE = "unfinished.json"


@dataclasses.dataclass
class Place:
    """Where a run stands: what to go on from.

    Attributes:
      source: number of the file.
      offset: bytes of it that are done.
      tokens, documents: written.
      vocabulary: tokens in the order of their ids.
      fixed: the vocabulary is not to grow.
      sources: what the run was given, to be compared.
    """

    sources: list[Any]
    vocabulary: list[str]
    fixed: bool
    source: int = 0
    offset: int = 0
    tokens: int = 0
    documents: int = 0


class Encoder:
    """Text to ids; gives new ids to what is new, unless the vocabulary is fixed."""

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
                raise ValueError(
                    f"--kind ({kind!r}) must be bytes, characters, words or MODULE:FUNCTION."
                )
            sys.path.insert(0, os.getcwd())
            self._function = getattr(importlib.import_module(module), name)
        self.dtype: type[np.unsignedinteger] = {"bytes": np.uint8, "characters": np.uint16}.get(
            kind, np.uint32
        )

    def __call__(self, texts: list[str], where: str) -> tuple[np.ndarray, list[int]]:
        """Ids of texts, one behind the other, and how many each has."""
        if self._kind == "characters":  # all at once: a line of text is short
            return self._characters("".join(texts), where), [len(text) for text in texts]
        parts = [self._encode(text, where) for text in texts]
        return np.concatenate(parts), [len(part) for part in parts]

    def _encode(self, text: str, where: str) -> np.ndarray:
        if self._function is not None:
            ids = np.asarray(self._function(text))
            if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer) or (ids < 0).any():
                raise ValueError(f"{where}: {self._kind} must give a list of integers from 0 on.")
            return ids.astype(self.dtype)
        if self._kind == "bytes":
            return np.frombuffer(text.encode("utf-8"), np.uint8)
        words = corpus.split_words(text)
        return np.fromiter((self._id(word, where) for word in words), np.uint32, len(words))

    def _characters(self, text: str, where: str) -> np.ndarray:
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        for code in np.unique(codes[self._table[codes] < 0]):
            self._table[code] = self._id(chr(code), where)
        return self._table[codes].astype(np.uint16)

    def _id(self, token: str, where: str) -> int:
        known = self._ids.get(token)
        if known is not None:
            return known
        if self._place.fixed:
            if self._kind == "words" and corpus.UNK in self._ids:
                return self._ids[corpus.UNK]
            raise ValueError(f"{where}: {token!r} is not in --vocabulary, which has no <unk>.")
        if self._kind == "characters" and len(self._ids) == 1 << 16:
            raise ValueError(f"{where}: there are more than 65,536 characters. Use --kind=words.")
        self._ids[token] = len(self._ids)
        self._place.vocabulary.append(token)
        return self._ids[token]


def pieces_of(path: pathlib.Path, offset: int, lines: bool) -> Iterator[tuple[str, int, bool]]:
    """`(text, offset behind it, whether a document ends there)`, from a byte offset on.

    Raises:
      ValueError: no UTF-8, or a line of a `.jsonl` file that is no document (where).
    """
    by_line = lines or path.suffix == ".jsonl"
    with path.open("rb") as file:
        file.seek(offset)
        if by_line:
            for line in file:
                offset += len(line)
                name = f"{path}: the line that ends at byte {offset}"
                text = documents.decode(line, name).strip("\r\n")
                if text.strip() == "":
                    continue
                content = documents.from_json(text, name) if path.suffix == ".jsonl" else text
                if not isinstance(content, str) or not content:
                    raise ValueError(f"{name} has no text, or an empty one.")
                yield content, offset, True
            return
        while block := file.read(BLOCK):
            if len(block) == BLOCK:
                block += file.readline()  # no word is cut, and no character
            offset += len(block)
            ends = file.tell() == path.stat().st_size
            yield documents.decode(block, f"{path} before byte {offset}"), offset, ends


class Batch(NamedTuple):
    """Attributes:
    texts: some, one behind the other.
    ended: whether a document ends behind each.
    offset: behind the last.
    """

    texts: list[str]
    ended: list[bool]
    offset: int


def batches_of(path: pathlib.Path, offset: int, lines: bool) -> Iterator[Batch]:
    """What `pieces_of` gives, in batches of about `BLOCK` bytes."""
    texts, ended, behind = [], [], offset
    for text, behind, ends in pieces_of(path, offset, lines):
        texts.append(text)
        ended.append(ends)
        if behind - offset >= BLOCK:
            yield Batch(texts, ended, behind)
            texts, ended, offset = [], [], behind
    if texts:
        yield Batch(texts, ended, behind)


def prepare(
    out: pathlib.Path, paths: list[pathlib.Path], kind: str, lines: bool, vocabulary: str | None
) -> dict[str, Any]:
    """Writes the folder; returns what `corpus.json` says."""
    out.mkdir(parents=True, exist_ok=True)
    place = begin(out, paths, kind, lines, vocabulary)
    encoder = Encoder(kind, place)
    itemsize = np.dtype(encoder.dtype).itemsize
    total = sum(path.stat().st_size for path in paths)
    done = sum(path.stat().st_size for path in paths[: place.source]) + place.offset
    bar = tqdm.tqdm(total=total, initial=done, unit="B", unit_scale=True, desc="reading")
    with open_at(out / corpus.TOKENS, place.tokens * itemsize) as tokens, open_at(
        out / corpus.ENDS, place.documents * 8
    ) as ends:  # fmt: skip
        saved = float(done)

        def save() -> None:
            for file in (tokens, ends):
                file.flush()
                os.fsync(file.fileno())
            write_json(out / STATE, dataclasses.asdict(place))

        for number in range(place.source, len(paths)):
            for batch in batches_of(paths[number], place.offset, lines):
                ids, lengths = encoder(batch.texts, str(paths[number]))
                tokens.write(ids.astype(f"<u{itemsize}").tobytes())
                of_documents = place.tokens + np.cumsum(lengths)[batch.ended]
                ends.write(of_documents.astype("<i8").tobytes())
                place.tokens += len(ids)
                place.documents += len(of_documents)
                bar.update(batch.offset - place.offset)
                place.offset = batch.offset
                if bar.n - saved >= SAVE_EVERY:
                    saved = bar.n
                    save()
            place.source, place.offset = number + 1, 0
        save()
    bar.close()
    return finish(out, place, kind, encoder.dtype)


def begin(
    out: pathlib.Path, paths: list[pathlib.Path], kind: str, lines: bool, vocabulary: str | None
) -> Place:
    """The beginning, or where an interrupted run of the same command stands."""
    sources = [kind, lines, vocabulary]
    sources += [[str(p), p.stat().st_size, p.stat().st_mtime_ns] for p in paths]
    if (out / corpus.ABOUT).exists():
        raise ValueError(f"{str(out)!r} holds a corpus already. Choose another --out.")
    if (out / STATE).exists():
        stored = Place(**json.loads((out / STATE).read_text("utf-8")))
        if stored.sources != sources:
            raise ValueError(
                f"{str(out)!r} holds an unfinished run on other files or of another kind. Choose "
                "another --out, or remove it."
            )
        return stored
    known: list[str] = []
    if vocabulary is not None:
        loaded = corpus.Vocabulary.load(vocabulary)
        if loaded.kind != kind:
            raise ValueError(f"--vocabulary is of {loaded.kind}, but --kind is {kind}.")
        known = list(loaded.tokens)
    elif kind in corpus.BOUNDARY:  # id 0 stands between documents
        known = [chr(k) for k in range(256)] if kind == "bytes" else [corpus.BOUNDARY[kind]]
    return Place(sources, known, fixed=vocabulary is not None)


def open_at(path: pathlib.Path, size: int) -> Any:
    """A file to go on writing at `size`; what is behind it was not finished."""
    file = path.open("r+b" if path.exists() else "w+b")
    file.truncate(size)
    file.seek(size)
    return file


def finish(
    out: pathlib.Path, place: Place, kind: str, dtype: type[np.unsignedinteger]
) -> dict[str, Any]:
    """Writes vocabulary and `corpus.json`, last of all."""
    digest = hashlib.sha256()
    for name in (corpus.TOKENS, corpus.ENDS):
        with (out / name).open("rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
    if kind in corpus.KINDS:
        corpus.Vocabulary(kind, tuple(place.vocabulary)).save(out / "vocabulary.json")
    about = {
        "version": 1,
        "kind": kind,
        "dtype": np.dtype(dtype).name,
        "tokens": place.tokens,
        "documents": place.documents,
        "sha256": digest.hexdigest(),
    }
    write_json(out / corpus.ABOUT, about)
    (out / STATE).unlink()
    return about


def write_json(path: pathlib.Path, content: Any) -> None:
    """Whole or not at all."""
    beside = path.with_name(path.name + ".partial")
    beside.write_text(json.dumps(content) + "\n", "utf-8")
    os.replace(beside, path)


def main(argv: list[str]) -> None:
    """Prepares, and prints what was made."""
    paths = [pathlib.Path(name) for name in argv[1:]]
    try:
        if not OUT.value:
            raise ValueError("--out is missing: the folder to write.")
        if not paths:
            raise ValueError("There are no files. Give their paths behind the flags.")
        for path in paths:
            if not path.is_file() or path.stat().st_size == 0:
                raise ValueError(f"There is no text in {str(path)!r}: no such file, or empty.")
        about = prepare(pathlib.Path(OUT.value), paths, KIND.value, LINES.value, VOCABULARY.value)
    except (ValueError, OSError, ImportError, AttributeError) as error:
        sys.exit(f"error: {error}")
    print(json.dumps(about))


if __name__ == "__main__":
    app.run(main)
