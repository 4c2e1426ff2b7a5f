"""Signals that ask a run to stop: it ends after its call, and loses nothing."""

import os
import signal
import threading
from types import FrameType
from typing import Any

from absl import logging


class StopOnSignal:
    """SIGTERM and SIGINT ask a run to stop after its call; a second one stops it at once.

    For `train(stop=)`. Handlers that were there before are called too.

    Attributes:
      received: the signal, once there was one.

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
        """Whether there was a signal."""
        return self.received is not None

    def exit(self) -> None:
        """Ends the process as the signal would have done; does nothing if there was none."""
        if self.received is not None:
            signal.signal(self.received, signal.SIG_DFL)
            os.kill(os.getpid(), self.received)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        for each in self.SIGNALS:  # the next one ends the process, whatever it is doing
            signal.signal(each, signal.SIG_DFL)
        logging.info(
            "%s: the run stops after this call and is saved. A second signal stops it at once.",
            self.received.name,
        )
        earlier = self._earlier.get(number)
        if callable(earlier) and earlier is not signal.default_int_handler:
            earlier(number, frame)
