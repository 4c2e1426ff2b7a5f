"""The outer loop: calls the trainer, and between the calls the actions that are due.

The inner loop, K windows in one compiled call, touches neither Python nor the host. This one reads
one handful of numbers a call.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence

from tbptt import checks
from tbptt.streams.feed import Feed
from tbptt.training import window as one
from tbptt.training.actions import Every, Report
from tbptt.training.trainer import Metrics, Trainer
from tbptt.training.window import Carry, ContinuityError
from tbptt.types import Cursor, Model


class NonFiniteError(RuntimeError):
    """Too many windows in a row had a loss or a gradient that was not finite."""


@dataclasses.dataclass(frozen=True)
class Position:
    """Where a run stands: all that is carried from call to call beside the variables."""

    carry: Carry
    cursor: Cursor = dataclasses.field(default_factory=Cursor)


def train(
    trainer: Trainer,
    feed: Feed,
    position: Position,
    *,
    windows: int,
    actions: Sequence[Every] = (),
    stop: Callable[[], bool] = lambda: False,
    max_skipped_in_a_row: int = 50,
) -> Position:
    """Trains until `trainer.step` is `windows`, and calls each action when it is due.

    A call takes `feed.windows_per_call` windows, fewer where an action falls due before;
    that is the same program.

    Args:
      trainer: the program.
      feed: what it reads.
      position: where to start; a new run starts from `Position(trainer.initial_carry(rows))`.
      windows: the step to stop at.
      actions: what to do between calls, in this order.
      stop: asked after every call and its actions; true ends the run there.
      max_skipped_in_a_row: so many windows without a finite gradient end the run.

    Returns:
      where the run stands.

    Raises:
      NonFiniteError, ContinuityError: see there.
    """
    checks.check_at_least("windows", windows, 1)
    step = trainer.windows_seen
    while step < windows:
        count = min(feed.windows_per_call, windows - step)
        count = min([count, *(action.distance(step) for action in actions)])
        began = time.perf_counter()
        chunk, cursor = feed.take(position.cursor, count)
        carry, metrics = trainer(position.carry, chunk)
        metrics = metrics.read()
        seconds = time.perf_counter() - began
        skipped = describe_skipped(trainer.model, metrics, step)
        _check(
            metrics,
            int(trainer.local(carry).skipped_in_a_row),
            position.cursor,
            step,
            max_skipped_in_a_row,
            skipped,
        )
        position = Position(carry, cursor)
        step += count
        report = Report(step, windows, metrics, position, seconds, skipped, trainer.local)
        for action in actions:
            if action.is_due(report):
                action.act(report)
        if stop():
            break
    return position


def describe_skipped(model: Model, metrics: Metrics, step: int) -> str:
    """Returns which windows of a call changed nothing, and why; empty if there are none.

    Args:
      model: names the parameters.
      metrics: of the call, as numbers.
      step: windows seen before it.
    """
    if not metrics.skipped:
        return ""
    first = f"window {step + metrics.first_skipped + 1}"
    reason = f"{one.describe_fault(model, int(metrics.fault))} is not finite"
    if metrics.skipped == 1:
        return f"{first} was skipped: {reason}"
    last = step + metrics.windows
    among = f"{metrics.skipped} of the windows {step + 1} to {last} were skipped"
    return f"{among}, first {first}: {reason}"


def _check(
    metrics: Metrics,
    skipped_in_a_row: int,
    cursor: Cursor,
    step: int,
    max_skipped: int,
    skipped: str,
) -> None:
    if metrics.broken >= 0:
        raise ContinuityError(
            f"The stream does not continue: window {metrics.broken} of the call that began at "
            f"{cursor} neither begins where its rows stood, nor resets them. No update was made "
            "from it on. Give each row the tokens that follow its last ones, or start=True."
        )
    if skipped_in_a_row >= max_skipped:
        raise NonFiniteError(
            f"{skipped_in_a_row} windows in a row up to window {step + metrics.windows} had a "
            f"loss or a gradient that is not finite; none of them changed the parameters. "
            f"{skipped[:1].upper()}{skipped[1:]}. Lower the learning rate, clip the gradient, or "
            "look for NaN in the inputs."
        )
