"""`Sampler`: draws tokens from a language model with temperature, top-k, nucleus and penalties."""

import dataclasses
import math
from typing import Any

import numpy as np
import tensorflow as tf

from tbptt import checks
from tbptt.types import Model, State


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is drawn; each setting is data of one compiled program.

        p = softmax(penalised logits / temperature), then cut by top_k, top_p and min_p

    Attributes:
      temperature: > 0; below 1 bolder, above 1 wilder.
      top_k: only the k most probable tokens; 0: all.
      top_p: only the most probable tokens that together reach this probability, 0 < top_p <= 1
        (nucleus sampling); 1: all.
      min_p: only tokens of at least this part of the largest probability, 0 <= min_p < 1.
      repetition_penalty: > 0: logits of tokens that were drawn or read before are divided by it
        where they are positive, and multiplied where they are negative; 1: nothing.

    Reference: Holtzman et al. (2020), The curious case of neural text degeneration (top_p); Nguyen
      et al. (2024), Turning up the heat: min-p sampling; Keskar et al. (2019), CTRL (penalty).
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        """Raises ValueError if a setting is not allowed."""
        for name in ("temperature", "repetition_penalty"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name} ({value}) must be above 0 and finite.")
        checks.check_at_least("top_k", self.top_k, 0)
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p ({self.top_p}) must be above 0 and at most 1.")
        checks.check_between("min_p", self.min_p, 0.0, 1.0)

    def as_tensors(self) -> dict[str, tf.Tensor]:
        """Returns the settings as scalars, which one compiled program takes."""
        kinds = {"top_k": tf.int32}
        values = dataclasses.asdict(self).items()
        return {name: tf.constant(value, kinds.get(name, tf.float32)) for name, value in values}


def ranked_probabilities(
    logits: tf.Tensor, seen: tf.Tensor, settings: dict[str, tf.Tensor]
) -> tuple[tf.Tensor, tf.Tensor]:
    """Computes the distribution that the next token is drawn from, the most probable one first.

    Args:
      logits: `[B, V]`.
      seen: `[B, V]` bool: tokens that were drawn or read before.
      settings: of `Sampling.as_tensors`.

    Returns:
      `[B, V]` ids, and their probabilities in the same order: 0 where a token is cut off.
    """
    logits = tf.cast(logits, tf.float32)
    penalty = settings["repetition_penalty"]
    penalised = tf.where(logits > 0, logits / penalty, logits * penalty)
    log_p = tf.nn.log_softmax(tf.where(seen, penalised, logits) / settings["temperature"])
    ids = tf.argsort(log_p, direction="DESCENDING", stable=True)
    p = tf.exp(tf.gather(log_p, ids, batch_dims=1))
    rank = tf.range(log_p.shape[-1])[None]
    kept = (rank < settings["top_k"]) | (settings["top_k"] == 0)
    before = tf.cumsum(p, axis=-1, exclusive=True)
    kept &= (before < settings["top_p"]) | (settings["top_p"] >= 1.0)
    kept &= p >= p[:, :1] * settings["min_p"]
    p = tf.where(kept | (rank == 0), p, 0.0)
    return ids, p / tf.reduce_sum(p, axis=-1, keepdims=True)


def draw(ids: tf.Tensor, p: tf.Tensor, uniform: tf.Tensor) -> tf.Tensor:
    """Draws one token a row by inverting the distribution: the first whose sum of `p` exceeds u.

    Args:
      ids, p: `[B, V]`, of `ranked_probabilities`.
      uniform: `[B]`, from 0 to below 1.

    Returns:
      `[B]` int32.
    """
    sums = tf.cumsum(p, axis=-1)
    rank = tf.reduce_sum(tf.cast(sums <= uniform[:, None] * sums[:, -1:], tf.int32), axis=-1)
    last = tf.reduce_sum(tf.cast(p > 0, tf.int32), axis=-1) - 1  # where rounding leads beyond
    return tf.gather(ids, tf.minimum(rank, last), batch_dims=1)


def uniforms(seeds: np.ndarray, begun: int, count: int) -> np.ndarray:
    """Returns numbers `begun` to `begun + count` of each seed's own sequence: `[count, B]`.

    They are Philox's, a counter-based generator, and multiples of 2^-24 below 1, which float32
    holds exactly; so they are the same on every machine.
    """
    columns = []
    for seed in seeds:
        key = np.asarray(seed, np.int64).view(np.uint64)
        numbers = np.random.Generator(np.random.Philox(key=key)).integers(0, 1 << 24, begun + count)
        columns.append(numbers[begun:])
    return np.stack(columns, axis=1).astype(np.float32) / np.float32(1 << 24)


class Sampler:
    """Draws tokens one after another, each drawn token being the next input, for B rows at once.

    One program serves all settings, numbers of tokens up to `most`, and seeds. A row's tokens
    depend on its own seed and on how many it has drawn, and not on its place in the batch.

    Example:
      >>> model = LanguageModel(5, 3, LSTM(3, 4, seed=make_seed(0)), seed=make_seed(1))
      >>> sampler = Sampler(model, most=8, jit_compile=False)
      >>> state = model.initial_state(2)
      >>> tokens, state = sampler(np.array([1, 1]), state, 4, [make_seed(3), make_seed(3)])
      >>> tokens.shape, np.array_equal(tokens[:, 0], tokens[:, 1])
      ((4, 2), True)
    """

    def __init__(self, model: Model, *, most: int = 256, jit_compile: bool = True) -> None:
        """Creates a sampler; nothing is traced yet.

        Args:
          model: a model whose outputs are logits `[T, B, V]`.
          most: the largest number of tokens of one call.
          jit_compile: whether XLA compiles the loop.
        """
        checks.check_at_least("most", most, 1)
        self._model, self._most = model, most
        self._program = tf.function(self._draw, autograph=False, jit_compile=jit_compile)

    @property
    def traces(self) -> int:
        """The number of programs that were traced: one for each number of rows."""
        return int(self._program.experimental_get_tracing_count())

    def __call__(
        self,
        last: np.ndarray,
        state: State,
        count: int,
        seeds: Any,
        sampling: Sampling = Sampling(),
        *,
        seen: np.ndarray | None = None,
        begun: int = 0,
    ) -> tuple[np.ndarray, State]:
        """Reads `last`, and draws `count` tokens for each row.

        Args:
          last: `[B]` ids: the last token of each row, which the model has not read yet.
          state: before `last`, leaves `[B, ...]`.
          count: tokens to draw, 1 <= count <= most.
          seeds: `[B, 2]` integers, one seed a row.
          sampling: see `Sampling`.
          seen: `[B, V]` bool: tokens that `repetition_penalty` counts as repeated. None: `last`.
          begun: tokens that were drawn in earlier calls with these seeds.

        Returns:
          Tokens `[count, B]`, and the state before the last of them: `tokens[-1]` and this state
          go on.

        Raises:
          ValueError: `count`, `last` or `seeds` cannot be used.
        """
        checks.check_between("count", count, 1, self._most + 1)
        last = np.asarray(last)
        size = getattr(self._model, "vocabulary_size", None)
        if size is not None and not ((last >= 0) & (last < size)).all():
            raise ValueError(f"last ({last.tolist()}) must be ids from 0 to {size - 1}.")
        checks.check_shape("last", last, [None])
        seeds = np.asarray(seeds)
        checks.check_shape("seeds", seeds, [len(last), 2])
        numbers = np.zeros([self._most, len(last)], np.float32)
        numbers[:count] = uniforms(seeds, begun, count)
        tokens, state = self._program(
            tf.constant(last, tf.int32),
            state,
            tf.constant(count, tf.int32),
            tf.constant(numbers),
            None if seen is None else tf.constant(seen),
            sampling.as_tensors(),
        )
        return tokens.numpy()[:count], state

    def _draw(
        self,
        last: tf.Tensor,
        state: State,
        count: tf.Tensor,
        numbers: tf.Tensor,
        seen: tf.Tensor | None,
        settings: dict[str, tf.Tensor],
    ) -> tuple[tf.Tensor, State]:
        """Reads `last` and draws; `numbers [most, B]` are uniform."""
        outputs, state = self._model(last[None], state)
        size = outputs.shape[-1]

        def one_hot(token: tf.Tensor) -> tf.Tensor:
            return tf.one_hot(token, size, on_value=True, off_value=False, dtype=tf.bool)

        def turn(
            k: tf.Tensor, token: tf.Tensor, state: State, seen: tf.Tensor, tokens: tf.Tensor
        ) -> tuple[Any, ...]:
            outputs, state = self._model(token[None], state)
            return add(k, outputs[0], state, seen, tokens)

        def add(
            k: tf.Tensor, logits: tf.Tensor, state: State, seen: tf.Tensor, tokens: tf.Tensor
        ) -> tuple[Any, ...]:
            token = draw(*ranked_probabilities(logits, seen, settings), numbers[k])
            tokens = tf.tensor_scatter_nd_update(tokens, [[k]], token[None])
            return k + 1, token, state, seen | one_hot(token), tokens

        seen = one_hot(last) if seen is None else seen | one_hot(last)
        tokens = tf.zeros([self._most, last.shape[0]], tf.int32)
        begun = add(tf.constant(0), outputs[0], state, seen, tokens)
        _, _, state, _, tokens = tf.while_loop(
            lambda k, *_: k < count, turn, begun, parallel_iterations=1
        )
        return tokens, state
