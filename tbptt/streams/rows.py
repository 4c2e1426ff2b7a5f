"""`RowStream`: the base class of streams; cuts rows, which a subclass reads, into windows."""

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
    """What `RowStream.read` returns: inputs, targets, weight and resets of some steps of some rows.

    Attributes:
      inputs, targets: `[B, N, ...]`, N steps of B rows.
      reset: `[B, N]` bool, whether the row is reset at this step. None: no resets.
      weight: `[B, N]` float32, 0 for steps that are not scored. None: 1.
    """

    inputs: np.ndarray
    targets: np.ndarray
    reset: np.ndarray | None = None
    weight: np.ndarray | None = None


class RowStream(abc.ABC):
    """Cuts rows of equal length into windows; a subclass reads the rows by its method `read`.

    Attributes:
      rows: B.
      row_length: the number of steps of a row in an epoch, without padding after it.
      window_length: T.
      windows_per_epoch: the number of windows in an epoch.
      epochs_alike: whether every epoch has the same windows.
      truncation: a `Truncation`.
      seed: the seed of all randomness, together with the epoch.
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
        """Sets the sizes of the stream; a subclass calls it.

        Args:
          rows, row_length, truncation, seed: see above.
          whole: whether to leave out steps at the end that do not fill a whole window.
          epochs_alike: whether `read` returns the same in every epoch.
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
        """Reads steps `first` to `first + count` of these rows, `first >= 0`; a pure function.

        Steps from `row_length` on may be asked for: they have weight 0.
        """

    def row_starts(self, epoch: int) -> np.ndarray:
        """Returns the offset at which every row begins, `[B]` int64."""
        del epoch
        return np.zeros([self.rows], np.int64)

    def windows(self, cursor: Cursor, count: int, rows: slice = ALL) -> tuple[Window, Cursor]:
        """Returns `count` stacked windows from the cursor on, and the cursor after them.

        A pure function: the same cursor gives the same windows, in any order of calls and in any
        process. Only `rows` are read, so each of many processes reads its own rows.

        Returns:
          The windows: inputs, targets `[count, T, B, ...]`; start `[count, B]` bool; offset
          `[count, B]` int64; and if the stream needs them weight `[count, T, B]` float32,
          update_scale `[count]` float32, and the controls reset `[count, T, B]` bool,
          gradient_scale `[count, T, B]` float32, advance `[count]` int32.

        Raises:
          ValueError: the data cannot be used (the message says where and why), the cursor is not
            in the stream, or count < 1.
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
        """Returns a random generator that depends on its arguments and the seed alone."""
        return np.random.default_rng([self.seed, purpose, epoch, *more])

    def _jittered_ends(self, epoch: int) -> np.ndarray:
        """Returns the ends of an epoch's windows with jitter, `[windows_per_epoch]`."""
        lengths = self.truncation.lengths(
            self.row_length, self.windows_per_epoch, self.random(0, epoch)
        )
        return np.cumsum(lengths)

    def _new_steps(self, epoch: int, index: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns start and number of the new steps of each window, `[count]` twice."""
        if not self.truncation.jitter:
            length = self.truncation.nominal_length
            return np.arange(index, index + count) * length, np.full([count], length)
        ends = np.concatenate([[0], self._ends(epoch)])[index : index + count + 1]
        return ends[:-1], np.diff(ends)

    def _piece(self, epoch: int, index: int, count: int, rows: slice) -> Window:
        """Cuts windows `index` to `index + count` of one epoch."""
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
    """Takes steps `[K, T]` of an array `[B, N, ...]`: the result is `[K, T, B, ...]`."""
    return None if part is None else np.ascontiguousarray(np.moveaxis(part[:, at], 0, 2))


def _broadcast(
    ours: np.ndarray, theirs: np.ndarray | None, rows: int, join: np.ufunc
) -> np.ndarray:
    """Joins `[K, T]`, the same for all rows, with `[K, T, B]`, which differs by row."""
    ours = np.broadcast_to(ours[..., None], [*ours.shape, rows])
    return np.ascontiguousarray(ours if theirs is None else join(ours, theirs))


def _join(*parts: Any) -> Any:
    """Concatenates a field of windows of several epochs; None if the stream has no such field."""
    return None if parts[0] is None else np.concatenate(parts)
