"""Converts text of any size to memory-mapped tokens, in one pass and in bounded memory.

    python -m tools.prepare --out=corpus --kind=characters a.txt b.txt
    python -m tools.prepare --out=corpus --kind=words --lines names.txt
    python -m tools.prepare --out=corpus --kind=mine.tokenizers:encode speeches.jsonl
    python -m experiments.language_model --prepared=corpus

Every file is a document; with --lines every line that is not blank is one; a `.jsonl` file has one
in every line, its `text`. --kind is bytes (of any file), characters, words, or MODULE:FUNCTION, a
function from a text to integers below 2**32. Characters get ids in the order in which they appear,
words by falling frequency. With --vocabulary, a file that such a run has written, ids are those of
the file, and unknown tokens become <unk>, if the file has it. Without --vocabulary the vocabulary
holds all tokens of the files, those of a later test part too.

The folder gets `tokens.bin`, little-endian integers; `ends.bin`, int64, the end of each document;
`vocabulary.json`; and at last `corpus.json` with counts and digests. The same command continues an
interrupted run; a run that fails leaves no files.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import tqdm
from absl import app, flags

from tbptt.streams import corpus, files
from tbptt.streams.files import DataError
from tbptt.streams.prepared import ABOUT, ENDS, TOKENS, VOCABULARY, digest_of
from tools.encoding import Encoder, Place

OUT = flags.DEFINE_string("out", None, "Folder to write, a new or an empty one.")
KIND = flags.DEFINE_string("kind", "characters", "bytes, characters, words or MODULE:FUNCTION.")
LINES = flags.DEFINE_bool("lines", False, "Every line is a document.")
KNOWN = flags.DEFINE_string("vocabulary", None, "vocabulary.json with ids to use.")

BLOCK = 4 << 20  # bytes read at a time
SAVE_EVERY = 64 << 20  # bytes between saves, from which an interrupted run continues
STATE, RENUMBERED = "unfinished.json", "renumbered.bin"


def pieces_of(
    path: pathlib.Path, offset: int, lines: bool, binary: bool
) -> Iterator[tuple[str | bytes, int, bool]]:
    """Yields `(text, offset after it, whether a document ends there)` from a byte offset on.

    Raises:
      DataError: the text is not UTF-8 and not `binary`, or a line is no document; the message
        names file and line.
    """
    json_lines = files.is_json(path)
    with path.open("rb") as file:
        if lines or json_lines:
            before = _lines_before(path, offset)
            file.seek(offset)
            for number, line in enumerate(file, start=before + 1):
                offset += len(line)
                if not line.strip():
                    continue
                name = f"{path}:{number}"
                content = files.document_of_line(line, name, json_lines=json_lines, binary=binary)
                if isinstance(content, np.ndarray):
                    raise DataError(f"{name} has tokens, but a text is needed here.")
                yield content, offset, True
            return
        file.seek(offset)
        while block := file.read(BLOCK):
            if len(block) == BLOCK:
                block += file.readline()  # so that no word and no character is cut
            text = block if binary else files.decode(block, str(path), offset)
            offset += len(block)
            yield text, offset, file.tell() == path.stat().st_size


def _lines_before(path: pathlib.Path, offset: int) -> int:
    """Counts the lines that end before a byte offset, for line numbers in messages."""
    count = 0
    with path.open("rb") as file:
        while offset > 0 and (block := file.read(min(BLOCK, offset))):
            count += block.count(b"\n")
            offset -= len(block)
    return count


class Batch(NamedTuple):
    """Texts that are encoded together, and their place in the file.

    Attributes:
      texts: consecutive texts.
      ended: whether a document ends after each.
      offset: the byte offset after the last.
    """

    texts: list[str | bytes]
    ended: list[bool]
    offset: int


def batches_of(path: pathlib.Path, offset: int, lines: bool, binary: bool) -> Iterator[Batch]:
    """Groups what `pieces_of` yields in batches of about `BLOCK` bytes."""
    texts: list[str | bytes] = []
    ended: list[bool] = []
    behind = offset
    for text, behind, ends in pieces_of(path, offset, lines, binary):
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
    """Writes the folder and returns the content of `corpus.json`.

    Raises:
      DataError: the folder is in other use, or a file cannot be used; then no files are left.
      OSError: the disk is full; the same command then continues.
    """
    place = begin(out, paths, kind, lines, vocabulary)
    encoder = Encoder(kind, place)
    made = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        save(out, place)  # marks the folder as that of this run
        read(out, paths, place, encoder, lines, binary=kind == "bytes")
        if kind == "words" and not place.fixed:
            renumber(out, place, encoder.dtype)
        return finish(out, place, kind, encoder.dtype)
    except ValueError:
        for name in (STATE, TOKENS, ENDS, RENUMBERED):
            (out / name).unlink(missing_ok=True)
        if made:
            out.rmdir()
        raise


def begin(
    out: pathlib.Path, paths: list[pathlib.Path], kind: str, lines: bool, vocabulary: str | None
) -> Place:
    """Returns the progress of a new run, or of an interrupted run of the same command.

    Raises:
      DataError: the folder holds anything else.
    """
    for path in paths:
        files.regular_file(path, "a text")
    sources = [kind, lines, vocabulary]
    sources += [[str(p), p.stat().st_size, p.stat().st_mtime_ns] for p in paths]
    if out.exists() and not out.is_dir():
        raise DataError(f"--out ({str(out)!r}) is a file. Give the name of a new folder.")
    if (out / ABOUT).exists():
        raise DataError(f"{str(out)!r} holds a corpus already. Choose another --out.")
    if (out / STATE).exists():
        return _interrupted(out, sources)
    there = sorted(path.name for path in out.iterdir()) if out.exists() else []
    if there:
        raise DataError(
            f"{str(out)!r} holds files of others ({there[0]!r} is the first), and this would write "
            "among them. Choose a new folder for --out, or an empty one."
        )
    known: list[str] = []
    if vocabulary is not None:
        loaded = corpus.Vocabulary.load(vocabulary)
        if loaded.kind != kind:
            raise DataError(f"--vocabulary is of {loaded.kind}, but --kind is {kind}.")
        known = list(loaded.tokens)
    elif kind == "bytes":
        known = list(corpus.BYTES)
    elif kind in corpus.BOUNDARY:
        known = [corpus.BOUNDARY[kind]]  # the token between documents
    return Place(sources, known, fixed=vocabulary is not None)


def _interrupted(out: pathlib.Path, sources: list[Any]) -> Place:
    """Reads the progress of an interrupted run.

    Raises:
      DataError: the run was on other files or of another kind, or the folder has changed since.
    """
    remove = f"Choose another --out, or remove {str(out)!r}."
    content = files.read_json(out / STATE, "what an interrupted run of tools.prepare has written")
    try:
        place = Place(**content)
        numbers = (place.source, place.offset, place.tokens, place.documents, place.ended)
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise TypeError(f"{numbers} are not all numbers")
    except TypeError as error:
        raise DataError(f"{STATE} in {str(out)!r} cannot be used: {error}. {remove}") from None
    if place.sources != sources:
        raise DataError(
            f"{str(out)!r} holds an unfinished run on other files or of another kind, or a file "
            f"has changed since. {remove}"
        )
    return place


def save(out: pathlib.Path, place: Place) -> None:
    """Saves the progress of the run."""
    files.write_whole(out / STATE, json.dumps(dataclasses.asdict(place)) + "\n")


def read(
    out: pathlib.Path,
    paths: list[pathlib.Path],
    place: Place,
    encoder: Encoder,
    lines: bool,
    *,
    binary: bool,
) -> None:
    """Writes the tokens of all files and the ends of documents, from `place` on."""
    itemsize = np.dtype(encoder.dtype).itemsize
    total = sum(path.stat().st_size for path in paths)
    done = sum(path.stat().st_size for path in paths[: place.source]) + place.offset
    bar = tqdm.tqdm(total=total, initial=done, unit="B", unit_scale=True, desc="reading")
    with bar, open_at(out / TOKENS, place.tokens * itemsize) as tokens, open_at(
        out / ENDS, place.documents * 8
    ) as ends:  # fmt: skip
        saved = float(done)
        for number in range(place.source, len(paths)):
            for batch in batches_of(paths[number], place.offset, lines, binary):
                ids, lengths = encoder(batch.texts, str(paths[number]))
                of_documents = place.tokens + np.cumsum(lengths)[batch.ended]
                if (np.diff(of_documents, prepend=place.ended) < 1).any():
                    raise DataError(
                        f"{paths[number]}: a document before byte {batch.offset} has no "
                        f"{place.sources[0]}. Leave it out."
                    )
                append(tokens, ids.astype(f"<u{itemsize}"))
                append(ends, of_documents.astype("<i8"))
                place.tokens += len(ids)
                place.documents += len(of_documents)
                place.ended = int(of_documents[-1]) if len(of_documents) else place.ended
                bar.update(batch.offset - place.offset)
                place.offset = batch.offset
                if bar.n - saved >= SAVE_EVERY:
                    saved = bar.n
                    sync(tokens, ends)
                    save(out, place)
            place.source, place.offset = number + 1, 0
        if place.tokens == 0:
            raise DataError(f"There is no {place.sources[0]} in the files, only blank lines.")
        sync(tokens, ends)
        save(out, place)


def append(file: Any, values: np.ndarray) -> None:
    """Writes values at the end of a file, or raises OSError with the file's name."""
    try:
        file.write(values.tobytes())
        file.flush()
    except OSError as error:
        raise OSError(error.errno, error.strerror, file.name) from None


def sync(*opened: Any) -> None:
    """Flushes files to the disk."""
    for file in opened:
        os.fsync(file.fileno())


@contextlib.contextmanager
def open_at(path: pathlib.Path, size: int) -> Iterator[Any]:
    """Opens a file to continue writing at `size`; later content, which was not finished, is cut.

    Raises:
      DataError: the file is shorter than `size`.
      OSError: an operation fails; the error has the file's name.
    """
    there = path.stat().st_size if path.exists() else 0
    if there < size:
        raise DataError(f"{str(path)!r} was cut since the interruption. Remove the folder.")
    try:
        with path.open("r+b" if path.exists() else "w+b") as file:
            file.truncate(size)
            file.seek(size)
            yield file
    except OSError as error:
        raise OSError(error.errno, error.strerror, error.filename or str(path)) from None


def renumber(out: pathlib.Path, place: Place, dtype: type[np.unsignedinteger]) -> None:
    """Renumbers words by falling frequency, and then alphabetically, as readouts expect.

    The new file is complete before the saved progress refers to it, and replaces the old one after
    that, so the run can be interrupted at any point.
    """
    if not place.renumbered:
        tokens = np.memmap(out / TOKENS, dtype, "r")
        blocks = range(0, len(tokens), BLOCK)
        counts = np.zeros([len(place.vocabulary)], np.int64)
        for k in blocks:
            counts += np.bincount(tokens[k : k + BLOCK], minlength=len(counts))
        counts[place.vocabulary.index(corpus.EOS)] += place.documents - 1  # between documents
        order = sorted(range(len(counts)), key=lambda k: (-counts[k], place.vocabulary[k]))
        new = np.empty([len(counts)], dtype)
        new[order] = np.arange(len(counts))
        with open_at(out / RENUMBERED, 0) as file:
            for k in blocks:
                append(file, new[tokens[k : k + BLOCK]])
            sync(file)
        place.vocabulary = [place.vocabulary[k] for k in order]
        place.renumbered = True
        save(out, place)
    if (out / RENUMBERED).exists():
        os.replace(out / RENUMBERED, out / TOKENS)


def finish(
    out: pathlib.Path, place: Place, kind: str, dtype: type[np.unsignedinteger]
) -> dict[str, Any]:
    """Writes the vocabulary, and at last `corpus.json`."""
    about = {
        "version": 2,
        "kind": kind,
        "dtype": np.dtype(dtype).name,
        "tokens": place.tokens,
        "documents": place.documents,
        "sha256": digest_of(out),
    }
    if kind in corpus.KINDS:
        vocabulary = corpus.Vocabulary(kind, tuple(place.vocabulary))
        vocabulary.save(out / VOCABULARY)
        about["vocabulary"] = vocabulary.sha256
    files.write_whole(out / ABOUT, json.dumps(about) + "\n")
    (out / STATE).unlink()
    return about


def main(argv: list[str]) -> None:
    """Prepares a corpus and prints the content of its `corpus.json`."""
    paths = [pathlib.Path(name) for name in argv[1:]]
    try:
        if not OUT.value:
            raise DataError("--out is missing: the folder to write.")
        if not paths:
            raise DataError("There are no files. Give their paths behind the flags.")
        about = prepare(pathlib.Path(OUT.value), paths, KIND.value, LINES.value, KNOWN.value)
    except OSError as error:
        sys.exit(
            f"error: {error.filename or OUT.value} cannot be written ({error.strerror}). Make room "
            "or choose another --out; the same command goes on where it was."
        )
    except (ValueError, ImportError, AttributeError) as error:
        sys.exit(f"error: {error}")
    print(json.dumps(about))


if __name__ == "__main__":
    app.run(main)
