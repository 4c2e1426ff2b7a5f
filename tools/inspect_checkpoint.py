"""Shows the content of a checkpoint and whether it is intact; compares two with --diff.

    python -m tools.inspect_checkpoint runs/mine
    python -m tools.inspect_checkpoint runs/mine/checkpoints/step-000000001200
    python -m tools.inspect_checkpoint --diff runs/mine runs/other

For a run's folder it prints a line for every checkpoint in it, then the newest intact one in full:
cursor, facts, and a table of its arrays. --diff compares two, array by array. The exit status is 1
if a checkpoint is damaged, or if the two differ.
"""

import json
import pathlib
import sys
import time
from typing import Any

import numpy as np
from absl import app, flags

from tbptt import checkpoint as ck
from tbptt.checkpoint.snapshot import cursor_of

DIFF = flags.DEFINE_bool("diff", False, "Compare two checkpoints or runs.")


def found_at(path: pathlib.Path) -> list[pathlib.Path]:
    """Returns the checkpoints of a run, oldest first, or `path` itself if it is a checkpoint.

    Raises:
      ValueError: there is none.
    """
    if (path / ck.store.MANIFEST).exists() or (path / ck.store.ARRAYS).exists():
        return [path]
    for folder in (path / "checkpoints", path):
        paths = [p for p in sorted(folder.glob("step-*")) if p.is_dir()]
        if paths:
            return paths
    raise ValueError(f"There is no checkpoint in {str(path)!r}. Give a run's folder.")


def read_newest(path: pathlib.Path) -> tuple[pathlib.Path, ck.Checkpoint]:
    """Reads the newest intact checkpoint; returns its path and content.

    Raises:
      CheckpointError: there is none; the message says what is wrong with each.
    """
    problems = []
    for each in reversed(found_at(path)):
        try:
            return each, ck.read_checkpoint(each)
        except ck.CheckpointError as error:
            problems.append(str(error))
    raise ck.CheckpointError(" ".join(problems))


def line_of(path: pathlib.Path) -> tuple[str, bool]:
    """Returns a line about one checkpoint, and whether it is intact."""
    try:
        checkpoint = ck.read_checkpoint(path)
    except ck.CheckpointError as error:
        return f"{path.name}: DAMAGED: {error}", False
    try:
        epoch, index = cursor_of(checkpoint)
    except ck.CheckpointError as error:
        return f"{path.name}: DAMAGED: {error}", False
    size = sum(file.stat().st_size for file in path.iterdir()) / 1e6
    minutes = (time.time() - path.stat().st_mtime) / 60
    text = f"window {checkpoint.step:,}, epoch {epoch}, its window {index:,}"
    return f"{path.name}: intact, {text}; {size:,.1f} MB, {minutes:,.0f} minutes old", True


def describe(checkpoint: ck.Checkpoint) -> str:
    """Returns the facts and the arrays of a checkpoint as text."""
    lines = [f"{name}: {json.dumps(value)}" for name, value in checkpoint.facts.items()]
    lines += [
        "",
        "| array | type | shape | norm | least | largest |",
        "|---|---|---|---:|---:|---:|",
    ]
    for name, array in checkpoint.arrays.items():
        shape = " x ".join(map(str, array.shape)) or "one"
        figures = ["", "", ""]
        numbers = array.dtype.kind in "biuf" or array.dtype.name == "bfloat16"
        if numbers and array.size:
            values = np.asarray(array, np.float64)
            figures = [f"{f:.4g}" for f in (np.linalg.norm(values), values.min(), values.max())]
        lines.append(f"| {name} | {array.dtype.name} | {shape} | {' | '.join(figures)} |")
    return "\n".join(lines)


def difference(a: ck.Checkpoint, b: ck.Checkpoint) -> list[str]:
    """Compares two checkpoints; returns a line for everything that differs."""
    lines = [] if a.step == b.step else [f"step: {a.step} and {b.step}"]
    for name in sorted({*a.facts, *b.facts}):
        if a.facts.get(name) != b.facts.get(name):
            lines.append(f"{name}: {_short(a.facts.get(name))} and {_short(b.facts.get(name))}")
    for name in sorted({*a.arrays, *b.arrays}):
        x, y = a.arrays.get(name), b.arrays.get(name)
        if x is None or y is None:
            lines.append(f"{name}: only in the {'second' if x is None else 'first'}")
        elif (x.dtype, x.shape) != (y.dtype, y.shape):
            lines.append(f"{name}: {x.dtype} {list(x.shape)} and {y.dtype} {list(y.shape)}")
        elif x.tobytes() != y.tobytes():
            far = np.abs(np.asarray(x, np.float64) - np.asarray(y, np.float64))
            share = np.mean(far > 0)
            lines.append(f"{name}: {share:.1%} of the elements differ, by {far.max():.3g} at most")
    return lines


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else text[:57] + "..."


def main(argv: list[str]) -> None:
    """Prints the checkpoints of a run, or the differences of two."""
    paths = [pathlib.Path(name) for name in argv[1:]]
    if len(paths) != (2 if DIFF.value else 1):
        sys.exit("error: give one run or checkpoint; two with --diff.")
    try:
        if DIFF.value:
            (_, first), (_, second) = map(read_newest, paths)
            lines = difference(first, second)
            print("\n".join(lines) or "the same, bit for bit")
            sys.exit(1 if lines else 0)
        told = [line_of(path) for path in found_at(paths[0])]
        print("\n".join(line for line, _ in told))
        if not any(intact for _, intact in told):
            sys.exit("error: none of these can be used.")
        path, checkpoint = read_newest(paths[0])
        print(f"\n{path.name}\n{describe(checkpoint)}")
    except ValueError as error:
        sys.exit(f"error: {error}")
    sys.exit(0 if all(intact for _, intact in told) else 1)


if __name__ == "__main__":
    app.run(main)
