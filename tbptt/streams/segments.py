"""`SegmentStream`: many segments, as documents or recordings, one after another on each row."""

import abc
import dataclasses
import functools
import heapq
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from tbptt import checks
from tbptt.streams.rows import RowStream, Span
from tbptt.streams.truncation import Truncation


@dataclasses.dataclass(frozen=True)
class Segments:
    """The values of many segments, concatenated; both arrays may be memory maps.

    Attributes:
      values: `[N, ...]`, tokens or frames.
      ends: `[P]` integers: segment p is `values[ends[p - 1] : ends[p]]`.

    Example:
      >>> segments = Segments.of([np.array([1, 2, 3]), np.array([4, 5])])
      >>> segments.values.tolist(), segments.ends.tolist(), len(segments)
      ([1, 2, 3, 4, 5], [3, 5], 2)
    """

    values: np.ndarray
    ends: np.ndarray

    def __post_init__(self) -> None:
        """Raises ValueError if values and ends do not fit together, or a segment is empty."""
        checks.check_shape("ends", self.ends, [None])
        if not np.issubdtype(self.ends.dtype, np.integer):
            raise TypeError(f"ends are {self.ends.dtype}, but must be integers.")
        if len(self.ends) == 0:
            raise ValueError("There are no segments: no document, no sequence.")
        if self.ends[-1] != len(self.values):
            raise ValueError(
                f"The index ends at {self.ends[-1]}, but there are {len(self.values)} values: "
                "index and values are not of the same corpus. Prepare it again."
            )
        if self.lengths.min() < 1:
            raise ValueError(
                f"Segment {self.lengths.argmin()} has length {self.lengths.min()}, but must have "
                "at least one step. Leave empty ones out."
            )

    def __len__(self) -> int:
        return len(self.ends)

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """The length of each segment, `[P]` int64."""
        return np.diff(np.asarray(self.ends, np.int64), prepend=0)

    @functools.cached_property
    def begins(self) -> np.ndarray:
        """The start of each segment in `values`, `[P]` int64."""
        return np.asarray(self.ends, np.int64) - self.lengths

    @classmethod
    def of(cls, arrays: Iterable[np.ndarray]) -> "Segments":
        """Concatenates arrays, one for each segment.

        Raises:
          ValueError: there is no array, or not all have the same width.
        """
        parts = [np.asarray(array) for array in arrays]
        if not parts:
            raise ValueError("There are no segments: no document, no sequence.")
        for number, part in enumerate(parts):
            if part.shape[1:] != parts[0].shape[1:] or part.ndim == 0:
                raise ValueError(
                    f"Segment {number} has shape {list(part.shape)}, but segment 0 has "
                    f"{list(parts[0].shape)}: all must be as wide. Pad or cut the features."
                )
        return cls(np.concatenate(parts), np.cumsum([len(part) for part in parts]))

    def part(self, first: int, last: int) -> "Segments":
        """Returns segments `first` to `last - 1`."""
        checks.check_between("first", first, 0, len(self))
        checks.check_between("last", last, first + 1, len(self) + 1)
        begin = int(self.begins[first])
        return Segments(
            self.values[begin : int(self.ends[last - 1])], self.ends[first:last] - begin
        )


class Deal(NamedTuple):
    """The order of the segments in one epoch, and where each begins when the rows are laid in line.

    Attributes:
      order: `[N]`, the segments along the line.
      ends: `[N]`, the end of each segment on the line.
      begins: `[B]`, the start of each row on the line.
    """

    order: np.ndarray
    ends: np.ndarray
    begins: np.ndarray


class SegmentStream(RowStream):
    """Reads one segment after another on each row, with a reset at the first step of each.

    Only the end of a row is padded. Every epoch has all segments, in another order with `shuffle`.
    By default the line of all segments is cut into B equal rows, and the at most B - 1 segments
    that are cut go on in the next row with an empty state. With `whole`, segments are assigned to
    rows once, the longest first and each to the shortest row, and epochs shuffle within the rows.

    Attributes: see `RowStream`, and
      segments: the number of segments.
      utilisation: the share of all steps of an epoch's windows that belong to a segment.
    """

    def __init__(
        self,
        steps: np.ndarray,
        *,
        rows: int,
        truncation: Truncation,
        shuffle: bool,
        whole: bool,
        seed: int,
    ) -> None:
        """Assigns the segments to rows; a subclass calls it.

        Args:
          steps: `[N]` int64, the number of steps of each segment, 1 or more.
          rows, truncation, seed: see `RowStream`.
          shuffle, whole: see above.
        """
        checks.check_at_least("rows", rows, 1)
        self.segments = len(steps)
        self._steps = steps
        self._total = int(steps.sum())
        if rows > (self.segments if whole else self._total):
            unit = "segments" if whole else "steps"
            fit = self.segments if whole else self._total
            raise ValueError(
                f"rows ({rows}) must be at most the number of {unit} ({fit}), or some would have "
                f"nothing to read. Use {fit} rows or fewer."
            )
        self._shuffle = shuffle
        self._row_of = _longest_first(steps, rows) if whole else None
        if self._row_of is None:
            row_length = -(-self._total // rows)
            ends = np.arange(1, rows + 1) * row_length
            self._row_steps = row_length - np.clip(ends - self._total, 0, row_length)
        else:
            self._row_steps = np.bincount(self._row_of, steps, rows).astype(np.int64)
        super().__init__(
            rows=rows,
            row_length=int(self._row_steps.max()),
            truncation=truncation,
            epochs_alike=not shuffle,
            seed=seed,
        )
        self._deal = functools.lru_cache(maxsize=2)(self._deal_of)  # an epoch and the next

    @property
    def utilisation(self) -> float:
        """The share of all steps of an epoch's windows that belong to a segment."""
        advances = self.truncation.nominal_length
        return self._total / (self.windows_per_epoch * advances * self.rows)

    @abc.abstractmethod
    def take(
        self, segment: np.ndarray, step: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Returns inputs, targets and weight at these steps of these segments, `[B, N]` each."""

    def read(self, epoch: int, first: int, count: int, rows: slice) -> Span:
        """Reads steps of some rows, see `RowStream.read`."""
        deal = self._deal(epoch)
        steps = first + np.arange(count)
        inside = steps < self._row_steps[rows, None]  # [B, count]
        at = np.where(inside, deal.begins[rows, None] + steps, 0)
        place = np.searchsorted(deal.ends, at, side="right")
        segment = deal.order[place]
        step = at - (deal.ends[place] - self._steps[segment])
        inputs, targets, weight = self.take(segment, step)
        scored = inside.astype(np.float32)
        scored = scored if weight is None else scored * weight
        return Span(inputs, targets, inside & (step == 0), scored)

    def _deal_of(self, epoch: int) -> Deal:
        order = np.arange(self.segments)
        if self._shuffle:
            order = self.random(4, epoch).permutation(order)
        if self._row_of is not None:
            order = order[np.argsort(self._row_of[order], kind="stable")]
        ends = np.cumsum(self._steps[order])
        return Deal(order, ends, np.cumsum(self._row_steps) - self._row_steps)


def _longest_first(steps: np.ndarray, rows: int) -> np.ndarray:
    """Assigns segments to rows, `[N]`: the longest first, each to the row with fewest steps."""
    row_of = np.empty([len(steps)], np.int32)
    load = [(0, row) for row in range(rows)]
    for segment in np.argsort(-steps, kind="stable"):
        least, row = load[0]
        row_of[segment] = row
        heapq.heapreplace(load, (least + int(steps[segment]), row))
    return row_of
