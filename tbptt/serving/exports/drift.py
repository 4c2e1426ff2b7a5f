"""Follows a model and its exports over many steps: how far outputs and state drift apart."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from tbptt.serving.exports.data import Steps
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
      relative_error: the root mean square of the outputs' differences, in units of that of the
        outputs.
      loss: the export's mean loss over the steps. None: there are no targets.
      original_loss: the model's.
    """

    name: str
    steps: int
    outputs: float
    state: float
    relative_error: float
    loss: float | None
    original_loss: float | None


class _Follower:
    """Runs a model or an export, and sums up its losses and its differences from the model."""

    def __init__(self, runner: Runner, rows: int) -> None:
        self._runner, self.now = runner, runner.initial_state(rows)
        self.outputs = self.state = self._squared = self._of_original = 0.0
        self._loss = 0.0

    def run(self, data: Steps, scores: Scores | None) -> Arrays:
        """Runs the next steps and returns the outputs."""
        outputs, self.now = self._runner.run(data.inputs, data.reset, self.now)
        if scores is not None and data.targets is not None:
            self._loss += float(np.sum(data.weight * scores(outputs, data.targets)))
        return outputs

    def compare(self, found: Arrays, expected: Arrays, state: Arrays) -> None:
        """Compares outputs of the last steps, and the state after them, with the model's."""
        self.outputs = max(self.outputs, difference(found, expected))
        self.state = max(self.state, difference(self.now, state))
        for name, wanted in expected.items():
            b = np.asarray(wanted, np.float64)
            self._squared += float(np.sum((np.asarray(found[name], np.float64) - b) ** 2))
            self._of_original += float(np.sum(b**2))

    def relative_error(self) -> float:
        """Returns the root mean square of the differences, in units of that of the outputs."""
        if self._squared == 0.0:
            return 0.0
        return float(np.sqrt(self._squared / self._of_original)) if self._of_original else np.inf

    def loss(self, weight: float) -> float | None:
        """Returns the mean loss of steps that weigh so much together; None if nothing counts."""
        return self._loss / weight if weight else None


def follow(
    original: Runner,
    exports: Mapping[str, Runner],
    data: Steps,
    *,
    scores: Scores | None = None,
    marks: Sequence[int] = MARKS,
    piece: int = PIECE,
) -> list[Drift]:
    """Feeds the same steps to a model and to its exports, each with a state of its own.

    Args:
      original: the model.
      exports: by name.
      data: the steps, `[T, B, ...]`.
      scores: the loss of every step. None: no loss is reported.
      marks: numbers of steps to report after; there is a report after the last step, too.
      piece: the number of steps that are run at a time. The states are compared after each piece.

    Returns:
      For every mark that is reached, a report of every export.
    """
    steps, rows = next(iter(data.inputs.values())).shape[:2]
    data = data.filled(steps, rows)
    ends = sorted({*(mark for mark in marks if mark < steps), steps})
    model = _Follower(original, rows)
    followers = {name: _Follower(runner, rows) for name, runner in exports.items()}
    has_loss = scores is not None and data.targets is not None
    found, read, weight = [], 0, 0.0
    while read < steps:
        now = slice(read, min(read + piece, next(end for end in ends if end > read)))
        given = data.part(now)
        expected = model.run(given, scores)
        for follower in followers.values():
            follower.compare(follower.run(given, scores), expected, model.now)
        read, weight = now.stop, weight + (float(np.sum(given.weight)) if has_loss else 0.0)
        if read in ends:
            found += [
                Drift(
                    name,
                    steps=read,
                    outputs=each.outputs,
                    state=each.state,
                    relative_error=each.relative_error(),
                    loss=each.loss(weight),
                    original_loss=model.loss(weight),
                )
                for name, each in followers.items()
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
        "| export | steps | outputs differ by | on average | state differs by | loss | original |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for one in sorted(drifts, key=lambda each: each.name):
        losses = (f"{x:.5f}" if x is not None else "" for x in (one.loss, one.original_loss))
        lines.append(
            f"| {one.name} | {one.steps:,} | {one.outputs:.1e} | {one.relative_error:.1e} | "
            f"{one.state:.1e} | {' | '.join(losses)} |"
        )
    return "\n".join(lines)
