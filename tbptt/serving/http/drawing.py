"""`Drawing`: draws the next token of several sessions at once, each with settings of its own."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tbptt.serving.drawing import draw, probabilities
from tbptt.serving.sampling import Sampling

SIZES = (1, 4, 16, 64)  # numbers of rows that are traced
ALIGNED = 16  # the vocabulary is filled up to a multiple of it
NEVER = -1e30  # the logit of what fills it up


@dataclasses.dataclass(frozen=True)
class Request:
    """One token to draw.

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

    A row is computed alike whatever the other rows are and however many: all work on a row is done
    along the row, whose length is a multiple of the vector registers', so that no element is a
    remainder in one batch and not in another.
    """

    def __init__(self) -> None:
        """Creates it; nothing is traced yet."""
        self._program = tf.function(_draw, autograph=False)

    def __call__(self, requests: Sequence[Request]) -> list[int]:
        """Returns a token for each request."""
        tokens: list[int] = []
        for first in range(0, len(requests), SIZES[-1]):
            tokens += self._some(requests[first : first + SIZES[-1]])
        return tokens

    def _some(self, requests: Sequence[Request]) -> list[int]:
        count, size = len(requests), len(requests[0].logits)
        rows = next(rows for rows in SIZES if rows >= count)
        logits = np.full([rows, -(-size // ALIGNED) * ALIGNED], NEVER, np.float32)
        seen = np.zeros(logits.shape, bool)
        for k, request in enumerate(requests):
            logits[k, :size], seen[k, :size] = request.logits, request.seen
        every = [requests[min(k, count - 1)] for k in range(rows)]
        numbers = np.array([request.number for request in every], np.float32)
        tokens = self._program(
            tf.constant(logits), tf.constant(seen), tf.constant(numbers), _columns(every)
        )
        return tokens.numpy()[:count].tolist()


def _columns(requests: Sequence[Request]) -> dict[str, tf.Tensor]:
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
