"""`Save`: a callback that writes checkpoints during training, every few windows or minutes."""

import time
from collections.abc import Callable
from typing import Any

from absl import logging

from tbptt import checks
from tbptt.checkpoint.store import Checkpoint, Checkpoints
from tbptt.training.actions import Report


class Save:
    """Writes a checkpoint when one is due and at the end of the run; use it in `EveryCall(save)`.

    The values are copied at once, between two calls; a thread writes them. If they cannot be
    written, as on a full disk, the error is logged after the next call and the run goes on.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        take: Callable[[Any], Checkpoint],
        *,
        windows: int = 0,
        minutes: float = 0.0,
        agree: Callable[[bool], tuple[bool, ...]] = lambda due: (due,),
    ) -> None:
        """Creates a callback that saves every few windows, every few minutes, or both.

        Args:
          checkpoints: the folder to write to.
          take: returns a checkpoint, given a `RunState`; usually it calls `snapshot`.
          agree: returns whether a checkpoint is due in any process of the run, as `Replicas.any`.
          windows: the number of windows between checkpoints; 0: no saving by windows. A checkpoint
            is written at the end of a call.
          minutes: the number of minutes between checkpoints; 0: no saving by time.
        """
        checks.check_at_least("windows between checkpoints", windows, 0)
        checks.check_at_least("minutes between checkpoints", minutes, 0.0)
        self._checkpoints = checkpoints
        self._take = take
        self._windows = windows
        self._seconds = 60.0 * minutes
        self._agree = agree
        self._last_step: int | None = None
        self._last_time = time.monotonic()  # a wall clock may jump

    def __call__(self, report: Report) -> None:
        """Writes a checkpoint if one is due after the call of `report`."""
        self.tell()
        if self._last_step is None:
            self._last_step = report.step - report.metrics.windows
        by_windows = self._windows and report.step // self._windows > (
            self._last_step // self._windows
        )
        by_time = False
        if self._seconds:  # processes agree, because their clocks differ
            (by_time,) = self._agree(time.monotonic() - self._last_time >= self._seconds)
        if by_windows or by_time or report.finished:
            self.save(report.run_state)

    def save(self, run_state: Any) -> None:
        """Copies the run and starts writing a checkpoint of it, whether one is due or not."""
        checkpoint = self._take(run_state)
        self._last_step, self._last_time = checkpoint.step, time.monotonic()
        self._checkpoints.wait()
        self.tell()
        self._checkpoints.save(checkpoint)

    def close(self) -> OSError | None:
        """Waits until the checkpoint is written; returns the error of the last save, or None."""
        self._checkpoints.wait()
        return self.tell()

    def tell(self) -> OSError | None:
        """Logs and returns an error of the disk since the last call; raises any other error."""
        error = self._checkpoints.error()
        if error is None:
            return None
        if not isinstance(error, OSError):
            raise error
        steps = self._checkpoints.steps()
        last = f"The last one is of window {steps[-1]}." if steps else "There is none so far."
        logging.error(
            "A checkpoint could not be written to %s: %s. The run goes on. %s",
            self._checkpoints.folder,
            error,
            last,
        )
        return error
