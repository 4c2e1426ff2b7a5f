"""`Limits`: what a server takes; `Refusal`: the answer to what it does not take; `RateLimit`."""

import dataclasses
import math
import time

from tbptt import checks

LONGEST_NAME = 100  # characters of a session or a mark


class Refusal(Exception):
    """A request that is refused: a status, one sentence, and headers.

    Attributes:
      status: of HTTP, 4xx or 503.
      sentence: what was given, the rule, and the way out.
      headers: further headers, as `Retry-After`.
    """

    def __init__(self, status: int, sentence: str, **headers: str) -> None:
        """Creates a refusal; `retry_after="1"` is the header `retry-after: 1`."""
        super().__init__(sentence)
        self.status, self.sentence = status, sentence
        self.headers = [
            (name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()
        ]


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a server takes, from all clients together unless it says otherwise.

    Attributes:
      body_bytes: of a request.
      steps: of a request: inputs that are fed, or tokens that are drawn.
      values: numbers in an answer.
      sessions: open at the same time.
      marks: of a session.
      idle_seconds: a session that nobody has used for so long expires.
      waiting: requests that run or wait; one more is answered 503.
      connections: open at the same time; one more is answered 503.
      rate: requests a second of one client's address; 0: any number.
      read_seconds: a request must have arrived completely after so long.
      write_seconds: a client that reads nothing of its answer for so long is cut off.
      grace_seconds: how long generation goes on after the server was told to stop.
    """

    body_bytes: int = 1 << 20
    steps: int = 4096
    values: int = 4_000_000
    sessions: int = 1024
    marks: int = 64
    idle_seconds: float = 1800.0
    waiting: int = 512
    connections: int = 1024
    rate: float = 0.0
    read_seconds: float = 10.0
    write_seconds: float = 30.0
    grace_seconds: float = 5.0

    def __post_init__(self) -> None:
        """Raises ValueError if a limit is not allowed."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not math.isfinite(value):
                raise ValueError(f"{field.name} ({value}) must be finite.")
            if field.name in ("rate", "grace_seconds", "marks"):
                checks.check_at_least(field.name, value, 0)
            elif field.type is float:
                if not value > 0:
                    raise ValueError(f"{field.name} ({value}) must be above 0.")
            else:
                checks.check_at_least(field.name, value, 1)


DEFAULTS = Limits()


class RateLimit:
    """Counts requests of each client's address, `rate` a second and as many at once.

    Memory is bounded: addresses whose allowance is whole again are forgotten.

    Example:
      >>> limit = RateLimit(2.0)
      >>> [limit.wait("10.0.0.1", now=5.0) for _ in range(3)]
      [0.0, 0.0, 0.5]
      >>> limit.wait("10.0.0.1", now=5.5)
      0.0
    """

    LARGEST = 10_000  # addresses that are remembered

    def __init__(self, rate: float) -> None:
        """Creates a limit of `rate` requests a second; 0: any number."""
        self._rate = rate
        self._left: dict[str, tuple[float, float]] = {}  # allowance, and when it was so

    def wait(self, address: str, now: float | None = None) -> float:
        """Counts a request, and returns 0.0; or the seconds to wait, if there were too many."""
        if not self._rate:
            return 0.0
        now = time.monotonic() if now is None else now
        most = max(1.0, self._rate)
        left, since = self._left.get(address, (most, now))
        left = min(most, left + (now - since) * self._rate)
        if left < 1.0:
            return (1.0 - left) / self._rate
        if address not in self._left and len(self._left) >= self.LARGEST:
            self._forget(now, most)
        self._left[address] = (left - 1.0, now)
        return 0.0

    def _forget(self, now: float, most: float) -> None:
        whole = [a for a, (x, t) in self._left.items() if x + (now - t) * self._rate >= most]
        for address in whole or list(self._left)[: self.LARGEST // 2]:
            del self._left[address]
