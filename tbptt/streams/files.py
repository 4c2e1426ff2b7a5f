"""Reads text files and JSON lines; an error names file, line and the expected form."""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

Document = str | bytes | np.ndarray  # a text, any bytes, or tokens


class DataError(ValueError):
    """Raised when data cannot be used; the message says where, why, and what to do."""


def regular_file(path: str | os.PathLike[str], expected: str) -> pathlib.Path:
    """Returns the path of a file after checking that it exists, can be read and is not empty.

    Args:
      path: the path of the file.
      expected: a description of the expected file, as `a UTF-8 text file`, for the message.

    Raises:
      DataError: there is no such file, it is a folder, a pipe or a device, or it is empty.
    """
    found = pathlib.Path(path)
    kind = ""
    try:
        if found.is_dir():
            kind = "a folder"
        elif found.exists() and not found.is_file():
            kind = "a pipe or a device"
        there, size = found.is_file(), found.stat().st_size if found.is_file() else 0
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read: {error.strerror}.") from None
    except ValueError:  # a character that no path holds
        there = False
    if kind:
        raise DataError(f"{str(path)!r} is {kind}, not a file. Give the path of {expected}.")
    if not there:
        raise DataError(f"There is no file {str(path)!r}. Give the path of {expected}.")
    if size == 0:
        raise DataError(f"{str(path)!r} is empty. Give the path of {expected}.")
    return found


def read_bytes(path: str | os.PathLike[str], expected: str = "a file") -> bytes:
    """Reads the bytes of a file that is not empty.

    Raises:
      DataError: see `regular_file`, or the file cannot be read.
    """
    found = regular_file(path, expected)
    try:
        return found.read_bytes()
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read: {error.strerror}.") from None


def read_text(path: str | os.PathLike[str]) -> str:
    """Reads the text of a UTF-8 file.

    Raises:
      DataError: there is no such file, it is empty, or it is not UTF-8; the message says where.
    """
    return decode(read_bytes(path, "a UTF-8 text file"), repr(str(path)))


def decode(data: bytes, name: str, offset: int = 0) -> str:
    """Decodes UTF-8 from offset `offset` of a file, or raises DataError that names the place."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{name} is not UTF-8: byte 0x{data[error.start]:02x} at offset "
            f"{offset + error.start}. Convert it (iconv -f latin1 -t utf-8), or take bytes, which "
            "may be any (--tokens=bytes, or --kind=bytes of tools.prepare)."
        ) from None


def parse_json(text: str, name: str, expected: str) -> Any:
    """Parses a JSON text, or raises DataError that names the place of the error."""
    try:
        return json.loads(text.strip())
    except RecursionError:
        reason = "it is nested too deeply"
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        reason = f"{error.msg} at {line}column {error.colno}"
    except ValueError:
        reason = "it holds a number of thousands of digits"
    raise DataError(f"{name} is not JSON ({reason}). It must be {expected}.")


def read_json(path: str | os.PathLike[str], expected: str) -> dict[str, Any]:
    """Reads the JSON object in a small file.

    Raises:
      DataError: there is no such file, or it does not hold one JSON object.
    """
    name = repr(str(path))
    content = parse_json(decode(read_bytes(path, expected), name), name, expected)
    if not isinstance(content, dict):
        raise DataError(f"{name} holds a {type(content).__name__}. It must be {expected}.")
    return content


DOCUMENT = 'an object like {"text": "..."} or {"tokens": [1, 2]}'


def document_of(line: str, name: str) -> str | np.ndarray:
    """Returns text or tokens of a JSON object, or raises DataError that says what is wrong."""
    content = parse_json(line, name, DOCUMENT)
    text = content.get("text") if isinstance(content, dict) else None
    tokens = content.get("tokens") if isinstance(content, dict) else None
    if isinstance(text, str) and tokens is not None:
        raise DataError(f"{name} has both a text and tokens. Leave one of them out.")
    if isinstance(text, str):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(
                f"{name} holds half of a surrogate pair, {text[error.start]!r}, which is no "
                "character. Remove it, or write both halves."
            ) from None
        return text
    if isinstance(tokens, list) and all(type(token) is int for token in tokens):
        wrong = [token for token in tokens if not 0 <= token < 1 << 31]
        if wrong:
            raise DataError(
                f"{name} has the token {wrong[0]}. Ids must be from 0 to 2,147,483,647."
            )
        return np.array(tokens, np.int64)
    raise DataError(f"{name} has neither a text nor tokens. Every line must be {DOCUMENT}.")


def read_documents(path: str, *, binary: bool = False) -> Iterator[tuple[str, Document]]:
    """Yields documents as `(name, text, bytes or tokens)`, one at a time.

    Args:
      path: a folder: every file in it is a document, in the order of the names; a `.jsonl` file:
        every line is a JSON object with a `text`, or with `tokens`, a list of integers; any other
        file: every line is a document. Blank lines are skipped.
      binary: whether documents that are not JSON may hold any bytes and are yielded as bytes.

    Raises:
      DataError: the path does not exist or is empty, a document is empty or not UTF-8, or a line
        is no such object; the message names file and line.
    """
    source = pathlib.Path(path)
    if source.is_dir():
        files = sorted(file for file in source.rglob("*") if file.is_file())
        if not files:
            raise DataError(f"{path!r} is a folder without files, so there are no documents.")
        for file in files:
            if file.stat().st_size == 0:
                raise DataError(f"{str(file)!r} is an empty document. Leave it out.")
            yield str(file), read_bytes(file) if binary else read_text(file)
        return
    regular_file(path, "a .jsonl file, a file of one document a line, or a folder of documents")
    found = False
    with source.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            name, found = f"{path}:{number}", True
            yield name, document_of_line(line, name, json_lines=is_json(source), binary=binary)
    if not found:
        raise DataError(f"{path!r} has only blank lines, so there are no documents.")


def is_json(path: pathlib.Path) -> bool:
    """Returns whether every line of a file is a JSON object, judging by its name."""
    return path.suffix == ".jsonl"


def document_of_line(line: bytes, name: str, *, json_lines: bool, binary: bool) -> Document:
    """Returns the document on a line that is not blank.

    Raises:
      DataError: it is empty, not UTF-8, or no JSON object with a text or tokens.
    """
    content: Document
    if json_lines:
        content = document_of(decode(line, name), name)
    elif binary:
        content = line.rstrip(b"\r\n")
    else:
        content = decode(line, name).rstrip("\r\n")
    if len(content) == 0:
        raise DataError(f"{name} is an empty document. Leave it out.")
    return content


def write_whole(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Writes a small file, completely or not at all.

    Raises:
      OSError: it cannot be written. An earlier file is unchanged, and no partial file is left.
    """
    beside = pathlib.Path(f"{os.fspath(path)}.partial")
    try:
        beside.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(beside, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from None
