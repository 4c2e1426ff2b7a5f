"""Follows a model and its exports over many steps: how far outputs and state drift apart."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from tbptt.serving.exports.interface import Arrays
from tbptt.serving.exports.opened import Runner
from tbptt.serving.exports.original import Scores

MARKS = (10, 1_000, 100_000)  # steps after which the report has a line
PIECE = 256  # steps that are run at a time


@dataclasses.dataclass(frozen=True)
class Drift:
    """How far an export is from the model after a number of steps.

    Attributes:
      name: of the export.
      steps: how many steps every row has read.
      outputs, state: the largest difference so far of any output, and of any part of the state,
        each in units of the largest number of that array, if that is above 1.
      loss: the export's mean loss over the steps. None: there are no targets.
      original_loss: the model's.
    """

    name: str
    steps: int
    outputs: float
    state: float
    loss: float | None
    original_loss: float | None


class _Sum:
    """Sums up the losses of one runner, and its largest differences."""

    def __init__(self) -> None:
        self.outputs = self.state = self.loss = 0.0


def follow(
    original: Runner,
    exports: Mapping[str, Runner],
    inputs: Arrays,
    reset: np.ndarray | None = None,
    *,
    targets: np.ndarray | None = None,
    weight: np.ndarray | None = None,
    scores: Scores | None = None,
    marks: Sequence[int] = MARKS,
    piece: int = PIECE,
) -> list[Drift]:
    """Feeds the same steps to a model and to its exports, each with a state of its own.

    Args:
      original: the model.
      exports: by name.
      inputs: `[T, B, ...]` by name.
      reset: `[T, B]`: rows that start anew. None: none.
      targets: `[T, B, ...]`, for the loss.
      weight: `[T, B]`: what a step counts in the loss. None: 1.
      scores: the loss of every step. None: no loss is reported.
      marks: numbers of steps to report after; there is a report after the last step, too.
      piece: the number of steps that are run at a time. The states are compared after each piece.

    Returns:
      For every mark that is reached, a report of every export.
    """
    steps, rows = next(iter(inputs.values())).shape[:2]
    reset = np.zeros([steps, rows], bool) if reset is None else reset
    weight = np.ones([steps, rows]) if weight is None else weight
    ends = sorted({*(mark for mark in marks if mark < steps), steps})
    runners = {"": original, **exports}
    states = {name: runner.initial_state(rows) for name, runner in runners.items()}
    sums = {name: _Sum() for name in runners}
    found, read, scored = [], 0, 0.0
    while read < steps:
        now = slice(read, min(read + piece, next(end for end in ends if end > read)))
        given = {name: x[now] for name, x in inputs.items()}
        results: dict[str, Arrays] = {}
        for name, runner in runners.items():
            results[name], states[name] = runner.run(given, reset[now], states[name])
            total = sums[name]
            total.outputs = max(total.outputs, difference(results[name], results[""]))
            total.state = max(total.state, difference(states[name], states[""]))
            if scores is not None and targets is not None:
                total.loss += float(np.sum(weight[now] * scores(results[name], targets[now])))
        read, scored = now.stop, scored + float(np.sum(weight[now]))
        if read in ends:
            losses = {
                name: total.loss / scored
                if scores is not None and targets is not None and scored
                else None
                for name, total in sums.items()
            }
            found += [
                Drift(name, read, sums[name].outputs, sums[name].state, losses[name], losses[""])
                for name in exports
            ]
    return found


def difference(found: Arrays, expected: Arrays) -> float:
    """Returns the largest difference of any array, in units of its largest number, 1 at least.

    Example:
      >>> difference({"a": np.array([10.0, 1.0])}, {"a": np.array([10.0, 2.0])})
      0.1
    """
    worst = 0.0
    for name, wanted in expected.items():
        a, b = np.asarray(found[name], np.float64), np.asarray(wanted, np.float64)
        if a.shape != b.shape:
            return float("inf")
        with np.errstate(invalid="ignore"):
            off = np.where(a == b, 0.0, np.abs(a - b)) / max(1.0, np.abs(b).max(initial=0.0))
        worst = max(worst, float(np.where(np.isnan(off), np.inf, off).max(initial=0.0)))
    return worst


def table(drifts: Sequence[Drift]) -> str:
    """Returns a table in Markdown of the reports."""
    lines = [
        "| export | steps | outputs differ by | state differs by | loss | of the original |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for one in sorted(drifts, key=lambda each: each.name):
        losses = (f"{x:.5f}" if x is not None else "" for x in (one.loss, one.original_loss))
        lines.append(
            f"| {one.name} | {one.steps:,} | {one.outputs:.1e} | {one.state:.1e} | "
            f"{' | '.join(losses)} |"
        )
    return "\n".join(lines)
