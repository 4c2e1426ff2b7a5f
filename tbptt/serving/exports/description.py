"""Reads and writes `description.json`, which says what an export is, and holds its checksums.

The file is JSON, `{"content": {...}, "sha256": ...}`. The content has a version, the kind, names,
types and shapes of everything that a step reads and returns, how data are prepared, the figures of
the run, the measured differences from the model, and size and SHA-256 of every other file.
"""

import json
import pathlib
from collections.abc import Callable
from typing import Any

from tbptt.checkpoint.manifest import digest_of
from tbptt.checkpoint.store import digest_of_file
from tbptt.serving.exports.errors import ExportError
from tbptt.serving.exports.interface import Interface

DESCRIPTION = "description.json"
FORMAT = "tbptt-export"
VERSION = 1


def write_description(folder: pathlib.Path, content: dict[str, Any]) -> None:
    """Writes the description of the export whose files are in `folder`.

    Raises:
      ExportError: the content is no JSON.
    """
    content = {"format": FORMAT, "version": VERSION, **content, "files": files_of(folder)}
    try:
        text = json.dumps({"content": content, "sha256": digest_of(content)}, indent=1)
        json.dumps(content, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ExportError(
            f"The description of the export is no JSON: {error}. Give results and preprocessing "
            "as numbers, strings, lists and dictionaries, without NaN."
        ) from None
    (folder / DESCRIPTION).write_text(text + "\n", "utf-8")


def read_description(folder: pathlib.Path) -> dict[str, Any]:
    """Returns the content of an export's description, after verifying it and every file.

    Raises:
      ExportError: there is no export, it is damaged, or of another version.
    """
    path = folder / DESCRIPTION
    if not path.is_file():
        inside = sorted(each.parent.name for each in folder.glob(f"*/{DESCRIPTION}"))
        raise ExportError(
            f"There is no export in {str(folder)!r}: it has no {DESCRIPTION}. "
            + (f"Give one of the exports in it: {', '.join(inside)}." if inside else WRITE_ONE)
        )
    try:
        read = json.loads(path.read_text("utf-8"))
        content = read["content"]
        fine = read["sha256"] == digest_of(content)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ExportError(f"{str(path)!r} cannot be read ({error!r}). {AGAIN}") from None
    if not fine:
        raise ExportError(f"{str(path)!r} is not what was written: its checksum differs. {AGAIN}")
    _check_version(path, content)
    _check_form(path, content)
    _check_files(folder, content["files"])
    return content


AGAIN = "Copy the export again, or write it again with python -m tools.export."
WRITE_ONE = "Write one with python -m tools.export --logdir=RUN --to=FOLDER."


def files_of(folder: pathlib.Path) -> dict[str, Any]:
    """Returns size and SHA-256 of every file in a folder but the description, by its path there."""
    return {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": digest_of_file(path),
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / DESCRIPTION
    }


def _check_version(path: pathlib.Path, content: Any) -> None:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ExportError(f"{str(path)!r} is not the description of an export. {WRITE_ONE}")
    if content.get("version") != VERSION:
        raise ExportError(
            f"{str(path)!r} is of version {content.get('version')!r}, and this is tbptt for "
            f"version {VERSION}. Use the tbptt that wrote it, or write the export again."
        )


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1


def _is_interface(value: Any) -> bool:
    try:
        Interface.from_json(value)
    except (KeyError, TypeError, ValueError, AttributeError):
        return False
    return True


# The fields that every description must have, and a check of each one's form.
FORM: dict[str, Callable[[Any], bool]] = {
    "kind": lambda value: isinstance(value, str),
    "batch": lambda value: value is None or _is_count(value),
    "interface": _is_interface,
    "preprocessing": lambda value: isinstance(value, dict),
    "result": lambda value: isinstance(value, dict),
    "tolerance": lambda value: isinstance(value, float),
    "files": lambda value: isinstance(value, dict),
}


def _check_form(path: pathlib.Path, content: dict[str, Any]) -> None:
    for name, holds in FORM.items():
        if not holds(content.get(name)):
            raise ExportError(f"{str(path)!r} is not an export's: {name!r} in it cannot be used.")


def _check_files(folder: pathlib.Path, told: dict[str, Any]) -> None:
    """Raises ExportError unless the files of an export are those that were written."""
    found = files_of(folder)
    for name in sorted({*told, *found}):
        if name not in found:
            raise ExportError(f"{str(folder)!r} has no file {name!r}. {AGAIN}")
        if name not in told:
            raise ExportError(
                f"{str(folder)!r} has a file {name!r} that does not belong to the export. Move it "
                "elsewhere."
            )
        if found[name] != told[name]:
            raise ExportError(
                f"{name!r} in {str(folder)!r} is not what was written: its size or its checksum "
                f"differs. {AGAIN}"
            )
