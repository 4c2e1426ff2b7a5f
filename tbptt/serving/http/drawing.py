"""`Drawing`: draws the next token of several sessions at once, each with settings of its own."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tbptt.serving.drawing import draw, probabilities
from tbptt.serving.sampling import Sampling


@dataclasses.dataclass(frozen=True)
class DrawRequest:
    """Asks for the next token of one session, with all that it depends on.

    Attributes:
      logits: `[V]` float32.
      seen: `[V]` bool, see `probabilities`.
      number: uniform, from 0 to below 1.
      sampling: how the token is drawn.
    """

    logits: np.ndarray
    seen: np.ndarray
    number: np.float32
    sampling: Sampling


class Drawing:
    """Draws tokens from logits as `Sampler` does, but with other settings for each row.

    One program of a fixed number of rows draws for fewer of them too, so a row's token is the same
    whoever else is drawn with it, and however many.
    """

    def __init__(self, rows: int, *, jit_compile: bool = True) -> None:
        """Creates it; nothing is traced yet.

        Args:
          rows: the number of rows that are drawn at once.
          jit_compile: whether XLA compiles the program.
        """
        self._rows = rows
        self._program = tf.function(_draw, autograph=False, jit_compile=jit_compile)

    def warm_up(self, vocabulary_size: int) -> None:
        """Compiles the program for a vocabulary, so that no request waits for it."""
        logits, seen = np.zeros(vocabulary_size, np.float32), np.zeros(vocabulary_size, bool)
        self([DrawRequest(logits, seen, np.float32(0), Sampling())])

    def __call__(self, requests: Sequence[DrawRequest]) -> list[int]:
        """Returns a token for each request."""
        tokens: list[int] = []
        for first in range(0, len(requests), self._rows):
            tokens += self._some(requests[first : first + self._rows])
        return tokens

    def _some(self, requests: Sequence[DrawRequest]) -> list[int]:
        """Draws for some requests, with copies of the last one in the other places."""
        count = len(requests)
        every = [requests[min(k, count - 1)] for k in range(self._rows)]
        tokens = self._program(
            tf.constant(np.stack([request.logits for request in every])),
            tf.constant(np.stack([request.seen for request in every])),
            tf.constant(np.array([request.number for request in every], np.float32)),
            _columns(every),
        )
        return tokens.numpy()[:count].tolist()


def _columns(requests: Sequence[DrawRequest]) -> dict[str, tf.Tensor]:
    """Returns the settings `[rows, 1]` by name."""
    kinds = {"top_k": np.int32}
    names = [field.name for field in dataclasses.fields(Sampling)]
    rows = [[getattr(one.sampling, name) for name in names] for one in requests]
    return {
        name: tf.constant(np.array(column, kinds.get(name, np.float32))[:, None])
        for name, column in zip(names, zip(*rows, strict=True), strict=True)
    }


def _draw(
    logits: tf.Tensor, seen: tf.Tensor, numbers: tf.Tensor, settings: dict[str, tf.Tensor]
) -> tf.Tensor:
    return draw(probabilities(logits, seen, settings), numbers)
