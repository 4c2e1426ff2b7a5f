"""Stops a run on SIGTERM or SIGINT: it ends after its current call, and loses nothing."""

import os
import signal
import threading
from types import FrameType
from typing import Any

from absl import logging


class StopOnSignal:
    """Stops a run after its current call on SIGTERM or SIGINT; a second signal stops it at once.

    For `train(stop=)`. Signal handlers that were installed before are called too.

    Attributes:
      received: the signal that was received, or None.

    Example:
      >>> with StopOnSignal() as stop:
      ...     before = stop()
      ...     signal.raise_signal(signal.SIGTERM)
      ...     before, stop(), stop.received.name
      (False, True, 'SIGTERM')
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._earlier: dict[int, Any] = {}

    def __enter__(self) -> "StopOnSignal":
        if threading.current_thread() is threading.main_thread():  # others get no signals
            for number in self.SIGNALS:
                self._earlier[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)
        self._earlier = {}

    def __call__(self) -> bool:
        """Returns whether a signal was received."""
        return self.received is not None

    def exit(self) -> None:
        """Ends the process as the signal would have done, if one was received."""
        if self.received is not None:
            signal.signal(self.received, signal.SIG_DFL)
            os.kill(os.getpid(), self.received)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        for each in self.SIGNALS:  # a second signal ends the process at once
            signal.signal(each, signal.SIG_DFL)
        logging.info(
            "%s: the run stops after this call and is saved. A second signal stops it at once.",
            self.received.name,
        )
        earlier = self._earlier.get(number)
        if callable(earlier) and earlier is not signal.default_int_handler:
            earlier(number, frame)
