"""Callbacks of the training loop: when they run, what they receive, progress bar and profiler."""

import dataclasses
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

import tensorflow as tf
import tqdm
from absl import logging

from tbptt import checks
from tbptt.training.window import LOSS
from tbptt.types import State


@dataclasses.dataclass(frozen=True)
class Report:
    """The argument of callbacks after a call of the trainer: step, metrics, the run's state.

    Attributes:
      step: the number of windows trained so far.
      last_step: the number of windows at the end of the run.
      metrics: `trainer.Metrics` of the last call, as numbers.
      run_state: `loop.RunState` after the call.
      seconds: the time that the last call took, feeding included.
      skipped: which windows of the last call were skipped, and why; empty if none was.
      local: returns this process's rows of a loop state, see `Trainer.local`.
    """

    step: int
    last_step: int
    metrics: Any
    run_state: Any
    seconds: float
    skipped: str = ""
    local: Callable[[Any], Any] = lambda loop_state: loop_state

    @property
    def state(self) -> State:
        """The recurrent state of this process's rows, leaves `[B, ...]`."""
        return self.local(self.run_state.loop_state).state

    @property
    def finished(self) -> bool:
        """Whether this was the last call of the run."""
        return self.step >= self.last_step


class Action(Protocol):
    """A callback of the training loop and the rule when it is due, as `Every` and `EveryCall`."""

    @property
    def act(self) -> Callable[[Report], None]:
        """The function to call with a `Report`."""

    def distance(self, step: int) -> int:
        """Returns in how many windows the callback is due; the loop ends its call there."""

    def is_due(self, report: Report) -> bool:
        """Returns whether the callback runs after the call that `report` describes."""


@dataclasses.dataclass(frozen=True)
class Every:
    """Calls `act` at every multiple of `windows` windows.

    Attributes:
      windows: 1 or more. A call of the trainer ends early where an action is due.
      act: called with a `Report`.
      at_end: whether to call it after the last call too.
    """

    windows: int
    act: Callable[[Report], None]
    at_end: bool = True

    def __post_init__(self) -> None:
        checks.check_at_least("windows between actions", self.windows, 1)

    def distance(self, step: int) -> int:
        """Returns the number of windows from window `step` to the next multiple."""
        return self.windows - step % self.windows

    def is_due(self, report: Report) -> bool:
        """Returns whether a multiple of `windows` is reached, or the end of the run."""
        return report.step % self.windows == 0 or (self.at_end and report.finished)


@dataclasses.dataclass(frozen=True)
class EveryCall:
    """Calls `act` after every call of the trainer, each of which trains many windows.

    Attributes:
      act: called with a `Report`.
    """

    act: Callable[[Report], None]

    def distance(self, step: int) -> int:
        """Returns the largest integer, because this callback never ends a call early."""
        return sys.maxsize

    def is_due(self, report: Report) -> bool:
        """Returns True: the callback runs after every call."""
        return True


class Progress:
    """Shows loss, speed and time left: a bar on a terminal, log lines elsewhere.

    The loss is the mean since it was last shown. Skipped windows are reported at once. The speed
    leaves out the first call, which traces and compiles.

    Attributes:
      tokens_per_second: the speed of the training calls, without evaluation and other actions.
    """

    def __init__(
        self,
        tokens_per_window: int,
        *,
        log_seconds: float = 10.0,
        loss_name: str = "loss",
    ) -> None:
        self._tokens_per_window = tokens_per_window
        self._log_seconds = log_seconds
        self._loss_name = loss_name
        self._bar: tqdm.tqdm | None = None
        self._next_log = 0.0
        self._loss_sum = self._weight_sum = 0.0  # since they were last shown
        self._first_step = 0
        self._windows = 0
        self._seconds = 0.0
        self._began = time.monotonic()

    def __call__(self, report: Report) -> None:
        """Updates the bar or writes a log line; pass `EveryCall(progress)` to `train`."""
        if self._bar is None:
            self._first_step = report.step - report.metrics.windows
            self._bar = progress_bar(report.last_step, initial=self._first_step)
        else:
            self._windows += report.metrics.windows
            self._seconds += report.seconds
        if report.skipped:
            self.note(report.skipped)
        loss = report.metrics.sums[LOSS]
        self._loss_sum += loss.total
        self._weight_sum += loss.weight
        mean = self._loss_sum / self._weight_sum if self._weight_sum else float("nan")
        text = f"{self._loss_name} {mean:.4f}"
        if self._windows:
            text += f", {self.tokens_per_second:,.0f} tokens/s"
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(report.metrics.windows)
        if not self._bar.disable or self._log(report, text):
            self._loss_sum = self._weight_sum = 0.0
        if report.finished:
            self._bar.close()

    def note(self, text: str) -> None:
        """Prints a line of text without breaking the bar."""
        if self._bar is None or self._bar.disable:
            logging.info("%s", text)
        else:
            self._bar.write(text, file=sys.stderr)

    @property
    def tokens_per_second(self) -> float:
        """The tokens (steps times rows) trained per second, without the time between calls."""
        return self._windows * self._tokens_per_window / max(self._seconds, 1e-9)

    def _log(self, report: Report, text: str) -> bool:
        """Writes a log line if one is due, and returns whether it did."""
        now = time.monotonic()
        if now < self._next_log and not report.finished:
            return False
        self._next_log = now + self._log_seconds
        done = report.step - self._first_step
        left = (now - self._began) / done * (report.last_step - report.step)
        logging.info(
            "window %d/%d, %s, %s left",
            report.step,
            report.last_step,
            text,
            clock(left),
        )
        return True


def progress_bar(
    total: int, *, initial: int = 0, label: str | None = None, delay: float = 0.0
) -> tqdm.tqdm:
    """Returns a progress bar of windows on standard error, silent where that is no terminal.

    Args:
      total: the number of windows at the end, those already seen included.
      initial: the number of windows already seen.
      label: a text before the bar. A bar with a label disappears when it is done.
      delay: seconds before the bar appears.
    """
    return tqdm.tqdm(
        total=total,
        initial=initial,
        desc=label,
        delay=delay,
        leave=label is None,
        unit="window",
        disable=not sys.stderr.isatty(),
        dynamic_ncols=True,
    )


def clock(seconds: float) -> str:
    """Formats seconds as a clock does: `1:02:03` or `2:03`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class Profile:
    """Traces windows `first` to `last` with TensorFlow's profiler, to be shown by TensorBoard.

    A call is traced completely, so the trace holds every call that touches the range.
    """

    def __init__(self, logdir: str, first: int, last: int) -> None:
        checks.check_at_least("first window of the profile", first, 0)
        checks.check_at_least("last window of the profile", last, first + 1)
        self._logdir = logdir
        self._first = first
        self._last = last
        self._running = False
        self._done = False

    def __call__(self, report: Report) -> None:
        """Starts or stops the profiler where it is due; pass `EveryCall(profile)` to `train`."""
        if self._running and (report.step >= self._last or report.finished):
            tf.profiler.experimental.stop()
            self._running, self._done = False, True
            logging.info("The trace of windows up to %d is in %s.", report.step, self._logdir)
        elif not self._done and not report.finished and report.step >= self._first:
            tf.profiler.experimental.start(self._logdir)
            self._running = True
