"""Reads and writes `manifest.json`, which describes a checkpoint and holds its checksums.

The file is strict JSON and is verified when it is read. From version 2 on, a fact that is an
infinite float or NaN is written as `{"$float": "inf"}`, `"-inf"` or `"nan"`, because JSON has no
such numbers. Every earlier version can be read.
"""

import hashlib
import json
import math
import pathlib
from collections.abc import Callable
from typing import Any

VERSION = 2
MANIFEST = "manifest.json"


class CheckpointError(ValueError):
    """Raised when a checkpoint is damaged, of another version, or of another run."""


class LaterVersionError(CheckpointError):
    """Raised when a checkpoint has a version that this program does not know."""


def manifest_of(content: dict[str, Any]) -> str:
    """Returns the manifest's text, given `step`, `facts`, `bytes`, `sha256` and `arrays`."""
    content = {"version": VERSION, **content, "facts": _encoded(content["facts"])}
    return json.dumps({"content": content, "sha256": digest_of(content)}, allow_nan=False)


def read_manifest(folder: pathlib.Path) -> dict[str, Any]:
    """Returns the content of a checkpoint's manifest, after verifying its checksum and its form.

    Raises:
      CheckpointError: it cannot be read, is damaged, of a later version, or something else.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text("utf-8"))
        content = manifest["content"]
        fine = manifest["sha256"] == digest_of(content)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error!r}.") from None
    if not fine:
        raise CheckpointError(f"{path} is not what was written: its checksum differs.")
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a checkpoint's: its content is no JSON object.")
    version: Any = content.get("version")
    if _is_count(version) and version > VERSION:
        raise LaterVersionError(
            f"{path} is of version {version}, but this program reads up to {VERSION}. Use a newer "
            "tbptt."
        )
    for name, holds in FORM.items():
        if not holds(content.get(name)):
            raise CheckpointError(
                f"{path} is not a checkpoint's: {name!r} in it is {_short(content.get(name))}."
            )
    facts = content["facts"] if version == 1 else _decoded(content["facts"])
    return {**content, "facts": facts}


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else text[:57] + "..."


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_arrays(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(each, list)
        and len(each) == 2
        and isinstance(each[0], str)
        and isinstance(each[1], list)
        and all(map(_is_count, each[1]))
        for each in value.values()
    )


# The fields that every manifest must have, and a check of each one's form.
FORM: dict[str, Callable[[Any], bool]] = {
    "version": lambda value: _is_count(value) and value > 0,
    "step": _is_count,
    "facts": lambda value: isinstance(value, dict),
    "bytes": _is_count,
    "sha256": lambda value: isinstance(value, str),
    "arrays": _is_arrays,
}


def _encoded(fact: Any) -> Any:
    """Encodes a fact as strict JSON, which has no infinite floats and no NaN."""
    if isinstance(fact, float) and not math.isfinite(fact):
        return {"$float": str(float(fact))}
    if isinstance(fact, dict):
        return {name: _encoded(value) for name, value in fact.items()}
    if isinstance(fact, list | tuple):
        return [_encoded(value) for value in fact]
    return fact


def _decoded(fact: Any) -> Any:
    """Decodes a fact that `_encoded` encoded, with infinite floats and NaN."""
    if isinstance(fact, dict):
        if list(fact) == ["$float"] and fact["$float"] in ("inf", "-inf", "nan"):
            return float(fact["$float"])
        return {name: _decoded(value) for name, value in fact.items()}
    return [_decoded(value) for value in fact] if isinstance(fact, list) else fact


def digest_of(content: Any) -> str:
    """Returns the SHA-256 of a JSON value, whatever the order of its names."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
