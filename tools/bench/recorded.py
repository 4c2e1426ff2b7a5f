"""Records one call of the trainer: compiled program, arguments, and TensorFlow's results."""

import dataclasses
import json
import pathlib
from typing import Any, NamedTuple

import numpy as np

from tools.bench.contestants import Size

MODULE, ARRAYS, FACTS = "step.mlir", "arrays.npz", "step.json"


class Step(NamedTuple):
    """A training call with its arguments and results, to be run elsewhere.

    Attributes:
      text: the program, as StableHLO.
      arguments, results: the arrays, in the module's order.
      carried: maps results of a call to arguments of the next call, by index.
      size: the sizes of model and windows.
    """

    text: str
    arguments: list[np.ndarray]
    results: list[np.ndarray]
    carried: dict[int, int]
    size: Size


def record(size: Size) -> Step:
    """Exports a training call and runs it in TensorFlow to record its results."""
    import tbptt  # noqa: F401  (keeps TensorFlow quiet while it is imported)

    import tensorflow as tf  # isort: skip

    from tools.bench import hlo
    from tools.bench.contestants import build_ours

    trainer, loop_state, chunk = build_ours(size)
    exported = hlo.export(trainer, loop_state, chunk)
    arguments = [given.numpy() for given in exported.inputs]
    returned = tf.nest.flatten(trainer(loop_state, chunk))
    places = [k for k, given in enumerate(exported.inputs) if isinstance(given, tf.Variable)]
    results = [each.numpy() for each in [*returned, *(exported.inputs[k] for k in places)]]
    carried = {k: k for k in range(len(tf.nest.flatten(loop_state)))}
    carried |= {len(returned) + k: place for k, place in enumerate(places)}
    return Step(exported.text, arguments, results, carried, size)


def write(step: Step, folder: pathlib.Path) -> None:
    """Writes a step to a new folder."""
    folder.mkdir(parents=True)
    (folder / MODULE).write_text(step.text)
    (folder / FACTS).write_text(
        json.dumps(dict(size=dataclasses.asdict(step.size), carried=list(step.carried.items())))
    )
    arrays = {f"argument-{k}": array for k, array in enumerate(step.arguments)}
    arrays |= {f"result-{k}": array for k, array in enumerate(step.results)}
    np.savez(folder / ARRAYS, allow_pickle=False, **arrays)


def read(folder: pathlib.Path) -> Step:
    """Reads a step from a folder that `write` has made."""
    facts = json.loads((folder / FACTS).read_text())
    with np.load(folder / ARRAYS, allow_pickle=False) as arrays:
        arguments, results = (
            [arrays[f"{kind}-{k}"] for k in range(sum(n.startswith(kind) for n in arrays.files))]
            for kind in ("argument", "result")
        )
    text, size = (folder / MODULE).read_text(), Size(**facts["size"])
    return Step(text, arguments, results, dict(facts["carried"]), size)


def difference(found: list[Any], expected: list[np.ndarray]) -> float:
    """Returns the largest difference of any result, relative to its largest number, 1 at least.

    Raises:
      ValueError: number, shapes or types of the results differ.
    """
    worst = 0.0
    for a, b in zip(map(np.asarray, found), expected, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            raise ValueError(
                f"A result is {a.dtype}{a.shape}, but TensorFlow's {b.dtype}{b.shape}."
            )
        off = np.abs(a.astype(np.float64) - b) / max(1.0, np.abs(b).max(initial=0.0))
        worst = max(worst, float(np.where(np.isfinite(off), off, np.inf).max(initial=0.0)))
    return worst
