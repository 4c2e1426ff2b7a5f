"""From rows that can be read anywhere to windows: what all streams have in common."""

import abc
import functools
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tbptt import checks
from tbptt.streams.truncation import Truncation
from tbptt.types import Controls, Cursor, Window, advance

TAILS = ("drop", "pad")
ALL = slice(None)


class Span(NamedTuple):
    """Some steps of some rows.

    Attributes:
      inputs, targets: `[B, N, ...]`, of B rows that were asked for.
      reset: `[B, N]` bool: the row starts anew at this step. None: nowhere.
      weight: `[B, N]` float32, 0 where there is nothing to score. None: 1.
    """

    inputs: np.ndarray
    targets: np.ndarray
    reset: np.ndarray | None = None
    weight: np.ndarray | None = None


class RowStream(abc.ABC):
    """A `Stream` over rows of equally many steps, which a subclass reads.

    Attributes:
      rows: B.
      row_length: steps of a row in an epoch, to its end or to its padding.
      window_length: T.
      windows_per_epoch: how many windows until every row is through.
      epochs_alike: whether every epoch has the same windows.
      truncation: see there.
      seed: of all that is random, together with the epoch.
    """

    def __init__(
        self,
        *,
        rows: int,
        row_length: int,
        truncation: Truncation,
        whole: bool = False,
        epochs_alike: bool = True,
        seed: int = 0,
    ) -> None:
        """Args:
        rows, row_length, truncation, seed: see above.
        whole: what does not fill a whole window at the end is left out.
        epochs_alike: whether `read` gives the same in every epoch.
        """
        self.rows = rows
        self.row_length = row_length
        self.window_length = truncation.window_length
        self.windows_per_epoch = truncation.windows(row_length, whole=whole)
        self.epochs_alike = epochs_alike and not truncation.is_random
        self.truncation = truncation
        self.seed = seed
        self._ends = functools.lru_cache(maxsize=2)(self._jittered_ends)  # an epoch and the next

    @abc.abstractmethod
    def read(self, epoch: int, first: int, count: int, rows: slice) -> Span:
        """Steps `first` to `first + count` of these rows, `first >= 0`.

        A pure function. Steps from `row_length` on may be asked for: they have weight 0.
        """

    def row_starts(self, epoch: int) -> np.ndarray:
        """Returns the offset at which every row begins, `[B]` int64."""
        del epoch
        return np.zeros([self.rows], np.int64)

    def windows(self, cursor: Cursor, count: int, rows: slice = ALL) -> tuple[Window, Cursor]:
        """`count` windows from the cursor on, stacked, and the cursor after them.

        A pure function: the same cursor gives the same windows, in whatever order they are asked
        for, and in any process. Of `rows` alone nothing else is read, as by one of many processes.

        Returns:
          inputs, targets `[count, T, B, ...]`; start `[count, B]` bool; offset `[count, B]`
          int64; and where the stream needs them weight `[count, T, B]` float32, update_scale
          `[count]` float32, and the controls reset `[count, T, B]` bool, gradient_scale
          `[count, T, B]` float32, advance `[count]` int32.

        Raises:
          ValueError: the data cannot be used (where, and why), the cursor is not in the stream,
            or count < 1.
        """
        checks.check_at_least("count", count, 1)
        checks.check_at_least("cursor.epoch", cursor.epoch, 0)
        checks.check_between("cursor.index", cursor.index, 0, self.windows_per_epoch)
        pieces = []
        left = count
        while left > 0:
            piece = min(left, self.windows_per_epoch - cursor.index)
            pieces.append(self._piece(cursor.epoch, cursor.index, piece, rows))
            cursor = advance(cursor, piece, self.windows_per_epoch)
            left -= piece
        return tf.nest.map_structure(_join, *pieces), cursor

    def random(self, purpose: int, epoch: int, *more: int) -> np.random.Generator:
        """A generator that depends on its arguments and the seed alone."""
        return np.random.default_rng([self.seed, purpose, epoch, *more])

    def _jittered_ends(self, epoch: int) -> np.ndarray:
        """Where the windows of an epoch end, `[windows_per_epoch]`."""
        lengths = self.truncation.lengths(
            self.row_length, self.windows_per_epoch, self.random(0, epoch)
        )
        return np.cumsum(lengths)

    def _new_steps(self, epoch: int, index: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Where the new steps of each window begin, and how many they are: `[count]` twice."""
        if not self.truncation.jitter:
            length = self.truncation.nominal_length
            return np.arange(index, index + count) * length, np.full([count], length)
        ends = np.concatenate([[0], self._ends(epoch)])[index : index + count + 1]
        return ends[:-1], np.diff(ends)

    def _piece(self, epoch: int, index: int, count: int, rows: slice) -> Window:
        """Windows `index` to `index + count` of one epoch."""
        cut, length = self.truncation, self.window_length
        begins, lengths = self._new_steps(epoch, index, count)
        firsts = begins - cut.look_back
        low = max(0, int(firsts[0]))
        span = self.read(epoch, low, int(firsts[-1]) + length - low, rows)
        some = len(span.inputs)
        steps = np.arange(length)
        at = firsts[:, None] + steps  # [count, T], step of the row
        inputs, targets, reset, weight = (_take(part, np.maximum(at - low, 0)) for part in span)
        if cut.look_back or cut.jitter:
            new = (steps >= cut.look_back) & (steps < cut.look_back + lengths[:, None])
            weight = _broadcast(new.astype(np.float32), weight, some, np.multiply)
        if cut.look_back:  # before the first step of the epoch there is nothing to look back to
            reset = None if reset is None else reset & (at >= 0)[..., None]
            reset = _broadcast(at == 0, reset, some, np.logical_or)
        start = np.zeros([count, some], bool)
        start[begins == 0] = True
        gradient_scale = (
            np.ones([count, length, some], np.float32) if cut.burn_in or cut.cut else None
        )
        for k in range(count if cut.cut or cut.drop_state else 0):
            rng = self.random(1, epoch, index + k)
            start[k] |= (rng.random(self.rows) < cut.drop_state)[rows]
            if gradient_scale is not None:
                kept = rng.random([length, self.rows])[:, rows] >= cut.cut
                gradient_scale[k] = kept / np.float32(1.0 - cut.cut)
        if gradient_scale is not None and cut.burn_in:
            gradient_scale[:, cut.burn_in] = 0.0
        moves = cut.look_back or cut.jitter
        return Window(
            inputs=inputs,
            targets=targets,
            weight=weight,
            start=start,
            offset=self.row_starts(epoch)[rows] + firsts[:, None],
            update_scale=(lengths / cut.nominal_length).astype(np.float32) if cut.jitter else None,
            controls=Controls(
                reset=reset,
                gradient_scale=gradient_scale,
                advance=lengths.astype(np.int32) if moves else None,
            ),
        )


def _take(part: np.ndarray | None, at: np.ndarray) -> np.ndarray | None:
    """`[B, N, ...]` at `[K, T]` -> `[K, T, B, ...]`."""
    return None if part is None else np.ascontiguousarray(np.moveaxis(part[:, at], 0, 2))


def _broadcast(
    ours: np.ndarray, theirs: np.ndarray | None, rows: int, join: np.ufunc
) -> np.ndarray:
    """`[K, T]` of all rows together with `[K, T, B]` of each."""
    ours = np.broadcast_to(ours[..., None], [*ours.shape, rows])
    return np.ascontiguousarray(ours if theirs is None else join(ours, theirs))


def _join(*parts: Any) -> Any:
    """Segments of several epochs; where one has no such field, the stream has none."""
    return None if parts[0] is None else np.concatenate(parts)
