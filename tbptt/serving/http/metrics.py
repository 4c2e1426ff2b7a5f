"""`Metrics`: counts requests, steps and rounds, and writes them in Prometheus' text format."""

import bisect
import collections
import itertools

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Histogram:
    """Counts values in buckets with fixed upper bounds.

    Example:
      >>> histogram = Histogram((1, 2))
      >>> for value in (0.5, 1.5, 7):
      ...     histogram.add(value)
      >>> print(histogram.text("seconds"))
      seconds_bucket{le="1"} 1
      seconds_bucket{le="2"} 2
      seconds_bucket{le="+Inf"} 3
      seconds_sum 9
      seconds_count 3
    """

    def __init__(self, bounds: tuple[float, ...]) -> None:
        """Creates a histogram of no values."""
        self._bounds, self._sum = bounds, 0.0
        self._counts = [0] * (len(bounds) + 1)

    def add(self, value: float) -> None:
        """Adds a value to the histogram."""
        self._counts[bisect.bisect_left(self._bounds, value)] += 1
        self._sum += value

    def text(self, name: str, labels: str = "") -> str:
        """Returns the lines of this histogram; `labels` as `route="/model"`."""
        before = f"{labels}," if labels else ""
        braces = f"{{{labels}}}" if labels else ""
        sums = list(itertools.accumulate(self._counts))
        bounds = [f"{bound:g}" for bound in self._bounds] + ["+Inf"]
        lines = [
            f'{name}_bucket{{{before}le="{bound}"}} {count}'
            for bound, count in zip(bounds, sums, strict=True)
        ]
        return "\n".join(
            [*lines, f"{name}_sum{braces} {self._sum:g}", f"{name}_count{braces} {sums[-1]}"]
        )


class Metrics:
    """What a server has done since it started.

    Attributes:
      steps: that sessions have read, drawn tokens included.
      tokens: that were drawn.
      expired: sessions that were closed because nobody used them.
      rounds: sessions that ran together, of each round.
    """

    def __init__(self) -> None:
        """Creates metrics of a server that has done nothing."""
        self.steps = self.tokens = self.expired = 0
        self.rounds = Histogram(ROWS)
        self._requests: collections.Counter[tuple[str, str, int]] = collections.Counter()
        self._seconds: dict[str, Histogram] = {}

    def count(self, method: str, route: str, status: int, seconds: float) -> None:
        """Counts a request that was answered; `route` is one of few, without a session's name."""
        self._requests[method, route, status] += 1
        if route not in self._seconds:
            self._seconds[route] = Histogram(SECONDS)
        self._seconds[route].add(seconds)

    def text(self, gauges: dict[str, tuple[str, float]]) -> str:
        """Returns all metrics; `gauges` are help and value by name."""
        lines = _head("tbptt_requests_total", "counter", "Requests that were answered.")
        for (method, route, status), count in sorted(self._requests.items()):
            labels = f'method="{method}",route="{route}",status="{status}"'
            lines.append(f"tbptt_requests_total{{{labels}}} {count}")
        lines += _head(
            "tbptt_request_seconds", "histogram", "Seconds until a request was answered."
        )
        for route, histogram in sorted(self._seconds.items()):
            lines.append(histogram.text("tbptt_request_seconds", f'route="{route}"'))
        lines += _head(
            "tbptt_round_sessions", "histogram", "Sessions that ran together in a round."
        )
        lines.append(self.rounds.text("tbptt_round_sessions"))
        counters = {
            "tbptt_steps_total": ("Steps that sessions have read.", self.steps),
            "tbptt_tokens_total": ("Tokens that were drawn.", self.tokens),
            "tbptt_sessions_expired_total": ("Sessions that nobody has used.", self.expired),
        }
        for kind, group in (("counter", counters), ("gauge", gauges)):
            for name, (text, value) in group.items():
                lines += [*_head(name, kind, text), f"{name} {value:g}" if value % 1 else
                          f"{name} {int(value)}"]  # fmt: skip
        return "\n".join(lines) + "\n"


def _head(name: str, kind: str, text: str) -> list[str]:
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
