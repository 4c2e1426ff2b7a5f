"""B read heads, far apart in one long sequence of tokens."""

import numpy as np

from tbptt import checks
from tbptt.types import Cursor, Window, advance

TAILS = ("drop", "pad")


class ContiguousStream:
    """Cuts one sequence into `rows` equal stretches, which are read side by side.

    Row b reads `tokens[b * L : (b + 1) * L]`, T at a time, and predicts what follows each
    token; its last target is the next row's first token. All rows start anew where an epoch
    starts, and nowhere else.

    Attributes:
      rows, window_length: B and T.
      windows_per_epoch: how many windows until every row is through.
      epochs_alike: True.

    Example:
      >>> stream = ContiguousStream(np.arange(13), rows=2, window_length=3, vocabulary_size=13)
      >>> window, cursor = stream.windows(Cursor(), 1)
      >>> window.inputs[0].T.tolist(), window.targets[0].T.tolist(), cursor
      ([[0, 1, 2], [6, 7, 8]], [[1, 2, 3], [7, 8, 9]], Cursor(epoch=0, index=1))
    """

    epochs_alike = True

    def __init__(
        self,
        tokens: np.ndarray,
        *,
        rows: int,
        window_length: int,
        vocabulary_size: int,
        tail: str = "drop",
    ) -> None:
        """Args:
        tokens: one-dimensional integers. A memory map is read window by window, and never
            kept in memory.
        rows: B.
        window_length: T.
        vocabulary_size: every token must be below it.
        tail: `drop`: what does not fill whole windows is left out, less than T a row and B
            in all; `pad`: every target is there exactly once, what is made up has weight 0.

        Raises:
          ValueError: B or T below 1, or more rows than the tokens can fill.
        """
        checks.check_at_least("rows", rows, 1)
        checks.check_at_least("window_length", window_length, 1)
        checks.check_choice("tail", tail, TAILS)
        checks.check_shape("tokens", tokens, [None])
        if not np.issubdtype(tokens.dtype, np.integer):
            raise TypeError(f"tokens are {tokens.dtype}, but must be integers.")
        self._check_length(len(tokens), rows, 1 if tail == "pad" else window_length)
        self.rows = rows
        self.window_length = window_length
        self.vocabulary_size = vocabulary_size
        self.targets = len(tokens) - 1
        self._tokens = tokens
        self._pad = tail == "pad"
        rounding = rows - 1 if self._pad else 0
        self._row_length = (self.targets + rounding) // rows  # L
        rounding = window_length - 1 if self._pad else 0
        self.windows_per_epoch = (self._row_length + rounding) // window_length
        self._row_starts = np.arange(rows, dtype=np.int64) * self._row_length

    def windows(self, cursor: Cursor, count: int) -> tuple[Window, Cursor]:
        """`count` windows from the cursor on, stacked, and the cursor after them.

        Returns:
          inputs, targets `[count, T, B]` int32; start `[count, B]` bool; position
          `[count, B]` int64, the index of a row's first token; with padding, weight
          `[count, T, B]` float32.

        Raises:
          ValueError: a token is out of range, the cursor is not in the stream, or count < 1.
        """
        checks.check_at_least("count", count, 1)
        checks.check_between("cursor.index", cursor.index, 0, self.windows_per_epoch)
        pieces = []
        left = count
        while left > 0:
            piece = min(left, self.windows_per_epoch - cursor.index)
            pieces.append(self._read(cursor.index, piece))
            cursor = advance(cursor, piece, self.windows_per_epoch)
            left -= piece
        fields = zip(*pieces, strict=True)
        joined = (None if parts[0] is None else np.concatenate(parts) for parts in fields)
        return Window(*joined), cursor

    def _read(self, index: int, count: int) -> Window:
        """Windows `index` to `index + count` of an epoch."""
        span = count * self.window_length
        first = self._row_starts + index * self.window_length
        tokens = _fresh(self._tokens)
        ids = np.zeros([self.rows, span + 1], np.int32)
        for row, start in enumerate(first):
            found = tokens[start : start + span + 1]
            ids[row, : len(found)] = found
        self._check_range(ids, first)
        windows = np.arange(index, index + count)
        offsets = windows[:, None] * self.window_length
        return Window(
            inputs=self._cut(ids[:, :-1]),
            targets=self._cut(ids[:, 1:]),
            weight=self._cut(self._weight(first, index, span)) if self._pad else None,
            start=np.broadcast_to(windows[:, None] == 0, [count, self.rows]),
            position=self._row_starts[None, :] + offsets,
        )

    def _cut(self, ids: np.ndarray) -> np.ndarray:
        """`[B, K * T] -> [K, T, B]`."""
        return np.ascontiguousarray(
            ids.reshape([self.rows, -1, self.window_length]).transpose(1, 2, 0)
        )

    def _weight(self, first: np.ndarray, index: int, span: int) -> np.ndarray:
        """1 for targets of the row itself, 0 behind its end, `[B, span]`."""
        steps = np.arange(span)
        in_row = index * self.window_length + steps < self._row_length
        in_tokens = first[:, None] + steps < self.targets
        return (in_row & in_tokens).astype(np.float32)

    def _check_range(self, ids: np.ndarray, first: np.ndarray) -> None:
        wrong = (ids < 0) | (ids >= self.vocabulary_size)
        if wrong.any():
            row, step = np.argwhere(wrong)[0]
            raise ValueError(
                f"Token {first[row] + step} is {ids[row, step]}, but ids must be from 0 to "
                f"{self.vocabulary_size - 1}. Encode the corpus with the model's vocabulary."
            )

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


def _fresh(tokens: np.ndarray) -> np.ndarray:
    """A memory map opened anew: pages that a map has touched count as resident while it lives."""
    if not isinstance(tokens, np.memmap) or tokens.filename is None:
        return tokens
    return np.memmap(tokens.filename, tokens.dtype, "r", tokens.offset, tokens.shape)
