"""`ContiguousStream`: cuts one long token sequence into B rows that are read in parallel."""

import numpy as np

from tbptt import checks
from tbptt.streams.files import DataError
from tbptt.streams.rows import TAILS, RowStream, Span
from tbptt.streams.truncation import Truncation, truncation_of

SHUFFLES = ("none", "offset", "rotate")


class ContiguousStream(RowStream):
    """Cuts one sequence into `rows` equal stretches, which are read side by side.

    Row b reads `tokens[b * L : (b + 1) * L]`, T at a time, and its targets are the tokens that
    follow; the last target is the next row's first token. All rows start anew at the start of an
    epoch, and nowhere else, unless `shuffle` is `rotate`.

    Attributes: see `RowStream`.

    Example:
      >>> stream = ContiguousStream(np.arange(13), rows=2, window_length=3, vocabulary_size=13)
      >>> window, cursor = stream.windows(Cursor(), 1)
      >>> window.inputs[0].T.tolist(), window.targets[0].T.tolist(), cursor
      ([[0, 1, 2], [6, 7, 8]], [[1, 2, 3], [7, 8, 9]], Cursor(epoch=0, index=1))
    """

    def __init__(
        self,
        tokens: np.ndarray,
        *,
        rows: int,
        vocabulary_size: int,
        window_length: int | None = None,
        truncation: Truncation | None = None,
        tail: str = "drop",
        shuffle: str = "none",
        seed: int = 0,
    ) -> None:
        """Creates a stream on one sequence of tokens.

        Args:
          tokens: one-dimensional integers. A memory map is read window by window, and never
              kept in memory.
          rows: B.
          vocabulary_size: every token must be below it.
          window_length: T, of windows one after another.
          truncation: other windows; instead of `window_length`.
          tail: `drop`: tokens that do not fill whole windows are left out, less than T a row and B
              in all; `pad`: every target occurs exactly once, and padding has weight 0.
          shuffle: what changes from epoch to epoch. `none`: nothing; `offset`: the first token, by
              less than T, so that windows end elsewhere; `rotate`: the place in its stretch where
              each row begins; the row starts anew where the stretch begins (Press, 2019, Partially
              shuffling the training data to improve language models).
          seed: the seed of all randomness.

        Raises:
          ValueError: B or T below 1, or more rows than the tokens can fill.
        """
        checks.check_at_least("rows", rows, 1)
        truncation = truncation_of(window_length, truncation)
        checks.check_choice("tail", tail, TAILS)
        checks.check_choice("shuffle", shuffle, SHUFFLES)
        checks.check_shape("tokens", tokens, [None])
        if not np.issubdtype(tokens.dtype, np.integer):
            raise TypeError(f"tokens are {tokens.dtype}, but must be integers.")
        spare = truncation.window_length - 1 if shuffle == "offset" else 0
        fill = 1 if tail == "pad" else truncation.window_length
        self._check_length(len(tokens) - spare, rows, fill)
        self.vocabulary_size = vocabulary_size
        self.targets = len(tokens) - 1
        self._tokens = tokens
        self._pad = tail == "pad"
        self._shuffle = shuffle
        rounding = rows - 1 if self._pad else 0
        super().__init__(
            rows=rows,
            row_length=(self.targets - spare + rounding) // rows,
            truncation=truncation,
            whole=not self._pad,
            epochs_alike=shuffle == "none",
            seed=seed,
        )
        self._starts = np.arange(rows, dtype=np.int64) * self.row_length

    def row_starts(self, epoch: int) -> np.ndarray:
        """Returns the index of each row's first token."""
        if self._shuffle != "offset":
            return self._starts
        return self._starts + self.random(2, epoch).integers(self.window_length)

    def read(self, epoch: int, first: int, count: int, rows: slice) -> Span:
        """Reads steps of rows, see `RowStream`; raises DataError if a token is out of range."""
        starts, tokens = self.row_starts(epoch)[rows], fresh(self._tokens)
        if self._shuffle == "rotate":
            return self._read_rotated(tokens, epoch, first, count, rows)
        ids = np.zeros([len(starts), count + 1], tokens.dtype)
        for row, start in enumerate(starts + first):
            found = tokens[start : start + count + 1]
            ids[row, : len(found)] = found
        check_ids(ids, (starts + first)[:, None] + np.arange(count + 1), self.vocabulary_size)
        ids = ids.astype(np.int32)
        steps = first + np.arange(count)
        weight = None
        if self._pad:
            inside = (steps < self.row_length) & (starts[:, None] + steps < self.targets)
            weight = inside.astype(np.float32)
        return Span(ids[:, :-1], ids[:, 1:], None, weight)

    def _read_rotated(
        self, tokens: np.ndarray, epoch: int, first: int, count: int, rows: slice
    ) -> Span:
        turns = self.random(3, epoch).integers(self.row_length, size=[self.rows, 1])[rows]
        starts = self._starts[rows, None]
        steps = first + np.arange(count)
        at = (turns + steps) % self.row_length
        inside = (steps < self.row_length) & (starts + at < self.targets)
        sources = np.minimum(starts + at, self.targets - 1)
        sources = np.stack([sources, sources + 1])
        ids = tokens[sources]
        check_ids(ids, sources, self.vocabulary_size)
        ids = ids.astype(np.int32)
        return Span(ids[0], ids[1], at == 0, inside.astype(np.float32) if self._pad else None)

    @staticmethod
    def _check_length(tokens: int, rows: int, window_length: int) -> None:
        fit = max(0, tokens - 1) // window_length
        if rows <= fit:
            return
        advice = f"Use at most {fit} rows, or a" if fit else "Use a"
        shorter = " shorter window or a" if window_length > 1 else ""
        raise ValueError(
            f"{tokens} tokens are too few for rows={rows} of at least one window of "
            f"{window_length}: that takes {rows * window_length + 1}. {advice}{shorter} longer "
            "corpus."
        )


def check_ids(ids: np.ndarray, places: np.ndarray, vocabulary_size: int) -> None:
    """Raises DataError, naming the first place, unless all ids are in `[0, vocabulary_size)`."""
    wrong = (ids < 0) | (ids >= vocabulary_size)
    if wrong.any():
        raise DataError(
            f"Token {places[wrong][0]} is {ids[wrong][0]}, but ids must be from 0 to "
            f"{vocabulary_size - 1}. Encode the corpus with the model's vocabulary."
        )


def fresh(tokens: np.ndarray) -> np.ndarray:
    """Reopens a memory map, so that pages read through an earlier map do not count as resident."""
    if not (isinstance(tokens, np.memmap) and tokens.filename and tokens.flags.c_contiguous):
        return tokens
    root = tokens  # a slice has the offset of the whole map, not its own
    while isinstance(root.base, np.memmap):
        root = root.base
    offset = root.offset + tokens.ctypes.data - root.ctypes.data
    return np.memmap(tokens.filename, tokens.dtype, "r", offset, tokens.shape)
