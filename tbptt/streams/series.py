"""`SeriesStream`: forecasts time series with calendar gaps, missing values and a horizon."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from tbptt import checks
from tbptt.streams.segments import Segments, SegmentStream
from tbptt.streams.truncation import Truncation, truncation_of


@dataclasses.dataclass(frozen=True)
class Series:
    """A table of measurements in the order of time, with missing values as NaN.

    Attributes:
      values: `[N, C]` float64, NaN where a value is missing.
      names: the names of the C columns.
      times: `[N]` datetime64, strictly increasing; None: there are no gaps.

    Example: a new stretch begins after a gap of two days.
      >>> days = np.array(["2020-01-01", "2020-01-02", "2020-01-05"], "datetime64[D]")
      >>> Series(np.zeros([3, 1]), ("x",), days).stretch_ends().tolist()
      [2, 3]
    """

    values: np.ndarray
    names: tuple[str, ...]
    times: np.ndarray | None = None

    def __post_init__(self) -> None:
        """Raises ValueError if values are infinite, times are not in order, or sizes differ."""
        checks.check_shape("values", self.values, [None, len(self.names)])
        infinite = np.argwhere(np.isinf(self.values))
        if len(infinite):
            line, column = infinite[0]
            raise ValueError(
                f"Line {line} of the series is infinite in column {self.names[column]!r}. Replace "
                "it, or make it NaN, which stands for a missing value."
            )
        if self.times is None:
            return
        checks.check_shape("times", self.times, [len(self.values)])
        late = np.flatnonzero(np.diff(self.times) <= np.timedelta64(0))
        if len(late):
            before, after = self.times[late[0]], self.times[late[0] + 1]
            what = "repeats" if before == after else "comes before"
            raise ValueError(
                f"Time {after} on line {late[0] + 1} of the series {what} the one on the line "
                f"above, {before}. Sort the lines, and leave one of each time."
            )

    def __len__(self) -> int:
        return len(self.values)

    def part(self, first: int, last: int) -> "Series":
        """Returns lines `first` to `last - 1` of the series."""
        checks.check_between("first", first, 0, len(self))
        checks.check_between("last", last, first + 1, len(self) + 1)
        times = None if self.times is None else self.times[first:last]
        return Series(self.values[first:last], self.names, times)

    def stretch_ends(self) -> np.ndarray:
        """Returns the ends of stretches without a gap, a step of 1.5 times the usual one."""
        if self.times is None or len(self) < 3:
            return np.array([len(self)])
        steps = np.diff(self.times).astype(np.int64)
        values, counts = np.unique(steps, return_counts=True)
        usual = values[counts.argmax()]
        return np.append(np.flatnonzero(steps >= 1.5 * usual) + 1, len(self))


@dataclasses.dataclass(frozen=True)
class Standardizer:
    """Standardizes columns by the mean and standard deviation that the training part has.

    Attributes:
      mean, deviation: `[C]`.
    """

    mean: np.ndarray
    deviation: np.ndarray

    @classmethod
    def of(cls, series: Series) -> "Standardizer":
        """Computes mean and deviation from the values that are not missing.

        A column that never changes is only centred.

        Raises:
          ValueError: a column has no value, or values too large.
        """
        empty = np.isnan(series.values).all(axis=0)
        if empty.any():
            raise ValueError(
                f"Column {series.names[int(empty.argmax())]!r} has no value in the training part. "
                "Leave it out."
            )
        with np.errstate(over="ignore", invalid="ignore"):
            deviation = np.nanstd(series.values, axis=0)
        if not np.isfinite(deviation).all():
            raise ValueError(
                f"Column {series.names[int(np.argmin(np.isfinite(deviation)))]!r} has values too "
                "large to be standardised. Replace them, or make them NaN, which stands for "
                "missing ones."
            )
        return cls(np.nanmean(series.values, axis=0), np.where(deviation > 0, deviation, 1.0))

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Standardizes values `[..., C]` by mean and deviation."""
        return (values - self.mean) / self.deviation

    def undo(self, values: np.ndarray, columns: Sequence[int]) -> np.ndarray:
        """Returns standardized values of `columns`, `[..., len(columns)]`, in their own units."""
        chosen = list(columns)
        return values * self.deviation[chosen] + self.mean[chosen]


class SeriesStream(SegmentStream):
    """Reads series on B rows, one stretch after another; predicts columns `horizon` lines ahead.

    A row is reset after every calendar gap. A missing value is read as the mean; if there are any,
    C more inputs say which values are present. A missing target has weight 0.

    Attributes: see `SegmentStream`, and
      input_size: the size of an input vector.
      origins: `[N]`, for each step of all stretches, one after another, the number of the line that
        it reads in its own series. With one row and no shuffling the row has this order.
      scored: the number of steps of an epoch with a target that counts.

    Example:
      >>> series = Series(np.array([[1.0], [2.0], [np.nan], [4.0]]), ("x",))
      >>> standardizer = Standardizer(np.zeros(1), np.ones(1))
      >>> stream = SeriesStream([series], standardizer, rows=1, window_length=3)
      >>> window, _ = stream.windows(Cursor(), 1)
      >>> window.inputs[0, :, 0].tolist(), window.targets[0, :, 0].tolist()
      ([[1.0, 1.0], [2.0, 1.0], [0.0, 0.0]], [[2.0], [0.0], [4.0]])
      >>> window.weight[0, :, 0].tolist()
      [1.0, 0.0, 1.0]
    """

    def __init__(
        self,
        series: Sequence[Series],
        standardizer: Standardizer,
        *,
        rows: int,
        window_length: int | None = None,
        truncation: Truncation | None = None,
        targets: Sequence[str] | None = None,
        horizon: int = 1,
        path: bool = False,
        warm_up: int = 0,
        masked: bool | None = None,
        changes: bool = False,
        shuffle: bool = False,
        whole: bool = False,
        seed: int = 0,
    ) -> None:
        """Creates a stream on the stretches of all series.

        Args:
          series: one or more series with the same columns.
          standardizer: standardizes all values, usually `Standardizer.of` the training part.
          rows: B.
          window_length: T, of windows one after another.
          truncation: other windows; instead of `window_length`.
          targets: names of the columns to predict. None: all.
          horizon: the number of lines to predict ahead, 1 or more.
          path: whether the targets are all lines up to the horizon, `[..., horizon * columns]`, the
            next line first, instead of the last one alone; they are scored if none is missing. For
            `EncoderDecoder`.
          warm_up: the number of first lines of each series that are read but not scored, as the
            context of a test part that continues a longer series.
          masked: whether the inputs say which values are present. None: only if any is missing.
            Streams that feed one model must agree.
          changes: whether C more inputs, after the values, are the change of each since the line
            before; 0 if either is missing.
          shuffle: whether the order of the stretches changes from epoch to epoch.
          whole: whether to keep each stretch on one row, see `SegmentStream`.
          seed: the seed of all randomness.

        Raises:
          ValueError: columns are unknown or differ between series, or no stretch is longer than
            the horizon.
        """
        checks.check_at_least("horizon", horizon, 1)
        checks.check_at_least("warm_up", warm_up, 0)
        if not series:
            raise ValueError("There are no series.")
        names = series[0].names
        for number, one in enumerate(series):
            if one.names != names:
                raise ValueError(
                    f"Series {number} has columns {', '.join(one.names)}, but series 0 has "
                    f"{', '.join(names)}. Give all the same, in the same order."
                )
        chosen = names if targets is None else tuple(targets)
        self._columns = [_column(names, name) for name in chosen]
        parts, scored, origins = [], [], []
        for one in series:
            begin = 0
            for end in one.stretch_ends():
                if end - begin > horizon:
                    parts.append(standardizer.apply(one.values[begin:end]))
                    scored.append(np.arange(begin, end) >= warm_up)
                    origins.append(np.arange(begin, end - horizon))
                begin = end
        if not parts:
            raise ValueError(
                f"No stretch without a gap is longer than the horizon ({horizon}). Use a shorter "
                "one, or a series with fewer gaps."
            )
        segments = Segments.of(parts)
        there = ~np.isnan(segments.values)
        self._there = there.astype(np.float32)
        self._weight = np.concatenate(scored) & there[:, self._columns].all(axis=1)
        self._values = np.where(there, segments.values, 0.0).astype(np.float32)
        self._begins = segments.begins
        self.origins = np.concatenate(origins)
        self._ahead = np.arange(1, horizon + 1) if path else np.array([horizon])
        self._masked = bool(masked if masked is not None else not there.all())
        self._changes = None
        if changes:
            self._changes = np.diff(self._values, axis=0, prepend=self._values[:1])
            self._changes[~(there & np.roll(there, 1, axis=0))] = 0.0
            self._changes[segments.begins] = 0.0
        spans = zip(segments.begins, segments.ends - horizon, strict=True)
        at = np.concatenate([np.arange(begin, end) for begin, end in spans])
        self._at = at  # the index among all values of the line that each step reads
        self.scored = int(self._counts(at).sum())
        self.input_size = len(names) * (1 + int(self._masked) + int(changes))
        super().__init__(
            segments.lengths - horizon,
            rows=rows,
            truncation=truncation_of(window_length, truncation),
            shuffle=shuffle,
            whole=whole,
            seed=seed,
        )

    def take(
        self, segment: np.ndarray, step: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Reads inputs, targets and weights at these steps, as `SegmentStream` asks for."""
        at = self._begins[segment] + step
        ahead = at[..., None] + self._ahead
        parts = (self._values, self._changes, self._there if self._masked else None)
        inputs = np.concatenate([part[at] for part in parts if part is not None], axis=-1)
        weight = self._counts(at).astype(np.float32)
        targets = self._values[ahead][..., self._columns]
        return inputs, targets.reshape([*at.shape, -1]), weight

    def _counts(self, at: np.ndarray) -> np.ndarray:
        """Returns whether the targets of these lines are scored."""
        return self._weight[at[..., None] + self._ahead].all(axis=-1)

    def persistence(self) -> float:
        """Returns the mean squared error of persistence: every target stays as it is now.

        It is in standardized units and over the `scored` steps, at which a model is scored too. A
        missing value is replaced by the last one of its stretch, or by the mean before the first.

        Example:
          >>> series = Series(np.array([[1.0], [2.0], [np.nan], [4.0]]), ("x",))
          >>> standardizer = Standardizer(np.zeros(1), np.ones(1))
          >>> SeriesStream([series], standardizer, rows=1, window_length=3).persistence()
          2.5
        """
        at = self._at[self._counts(self._at)]
        known = np.where(self._there > 0, np.arange(len(self._there))[:, None], -1)
        known[self._begins] = np.maximum(known[self._begins], self._begins[:, None])
        last = np.maximum.accumulate(known, axis=0)[at]
        columns = np.array(self._columns)
        now = self._values[last[:, columns], columns].astype(np.float64)
        truth = self._values[at[:, None] + self._ahead][..., columns]
        return float(np.mean((truth - now[:, None]) ** 2))


def _column(names: Sequence[str], name: str) -> int:
    if name not in names:
        raise ValueError(f"There is no column {name!r}. There are: {', '.join(names)}.")
    return list(names).index(name)
