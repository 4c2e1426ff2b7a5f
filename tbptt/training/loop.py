"""The outer training loop, `train`: calls the trainer, and the callbacks between its calls.

The inner loop, K windows in one compiled call (`programs`), touches neither Python nor the host.
The outer loop reads a few numbers once a call. `RunState` holds the recurrent state and the cursor
between calls.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence

from tbptt import checks
from tbptt.streams.feed import Feed
from tbptt.training.actions import Action, Report
from tbptt.training.trainer import Metrics, Trainer
from tbptt.training.window import ContinuityError, LoopState, describe_fault
from tbptt.types import Cursor, Model


class NonFiniteError(RuntimeError):
    """Raised when too many windows in a row had a loss or a gradient that was not finite."""


@dataclasses.dataclass(frozen=True)
class RunState:
    """The recurrent state and the cursor between calls; `snapshot` saves it with the trainer.

    Attributes:
      loop_state: the recurrent state of all rows, and the offset of each in its stream.
      cursor: the next window of the stream.
    """

    loop_state: LoopState
    cursor: Cursor = dataclasses.field(default_factory=Cursor)


def train(
    trainer: Trainer,
    feed: Feed,
    run_state: RunState,
    *,
    windows: int,
    actions: Sequence[Action] = (),
    stop: Callable[[], bool] = lambda: False,
    max_skipped_in_a_row: int = 50,
) -> RunState:
    """Trains until `trainer.step` is `windows`, and calls each action when it is due.

    A call trains `feed.windows_per_call` windows, or fewer where an action is due earlier;
    both run the same compiled program.

    Args:
      trainer: the trainer, which trains the windows of a call.
      feed: the windows to train on, see `open_feed`.
      run_state: the state to start from; a new run starts from
        `RunState(trainer.initial_loop_state(rows))`, one that is resumed from `resume(...)`.
      windows: the step to stop at.
      actions: callbacks between calls, in this order: `Every` and `EveryCall`.
      stop: called after every call and its actions; if it returns True the run ends there.
      max_skipped_in_a_row: the run ends with an error after this many windows in a row without a
        finite gradient.

    Returns:
      The run's state after the last window.

    Raises:
      NonFiniteError: too many windows in a row were skipped.
      ContinuityError: the windows of the feed do not continue the rows.
    """
    checks.check_at_least("windows", windows, 1)
    step = trainer.windows_seen
    while step < windows:
        count = min(feed.windows_per_call, windows - step)
        count = min([count, *(action.distance(step) for action in actions)])
        began = time.perf_counter()
        chunk, cursor = feed.take(run_state.cursor, count)
        loop_state, metrics = trainer(run_state.loop_state, chunk)
        metrics = metrics.read()
        seconds = time.perf_counter() - began
        skipped = describe_skipped(trainer.model, metrics, step)
        _check(
            metrics,
            int(trainer.local(loop_state).skipped_in_a_row),
            run_state.cursor,
            step,
            max_skipped_in_a_row,
            skipped,
        )
        run_state = RunState(loop_state, cursor)
        step += count
        report = Report(step, windows, metrics, run_state, seconds, skipped, trainer.local)
        for action in actions:
            if action.is_due(report):
                action.act(report)
        if stop():
            break
    return run_state


def describe_skipped(model: Model, metrics: Metrics, step: int) -> str:
    """Describes the windows of a call that were skipped, and why; empty if there are none.

    Args:
      model: gives the names of the parameters.
      metrics: the metrics of the call, as numbers.
      step: the number of windows trained before the call.
    """
    if not metrics.skipped:
        return ""
    first = f"window {step + metrics.first_skipped + 1}"
    reason = f"{describe_fault(model, int(metrics.fault))} is not finite"
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
