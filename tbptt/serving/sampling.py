"""`Sampler`: draws tokens from a language model with temperature, top-k, nucleus and penalties."""

import dataclasses
import math
from typing import Any

import numpy as np
import tensorflow as tf

from tbptt import checks
from tbptt.seeds import fold_in
from tbptt.types import Model, Seed, State


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


def log_probabilities(
    logits: tf.Tensor, seen: tf.Tensor, settings: dict[str, tf.Tensor]
) -> tf.Tensor:
    """Computes the logarithm of the distribution that the next token is drawn from.

    Args:
      logits: `[B, V]`.
      seen: `[B, V]` bool: tokens that were drawn or read before.
      settings: of `Sampling.as_tensors`.

    Returns:
      `[B, V]`: log probabilities, minus infinity where a token is cut off.
    """
    logits = tf.cast(logits, tf.float32)
    penalty = settings["repetition_penalty"]
    penalised = tf.where(logits > 0, logits / penalty, logits * penalty)
    logits = tf.where(seen, penalised, logits) / settings["temperature"]
    log_p = tf.nn.log_softmax(logits)
    size = log_p.shape[-1]
    order = tf.argsort(log_p, direction="DESCENDING", stable=True)
    ranked = tf.gather(log_p, order, batch_dims=1)
    rank = tf.range(size)[None]
    top_k = tf.where(settings["top_k"] > 0, settings["top_k"], size)
    before = tf.cumsum(tf.exp(ranked), axis=-1, exclusive=True)
    kept = (rank < top_k) & ((before < settings["top_p"]) | (settings["top_p"] >= 1.0))
    kept &= ranked >= ranked[:, :1] + tf.math.log(settings["min_p"])
    kept |= rank == 0  # at least one
    place = tf.argsort(order)
    log_p = tf.where(tf.gather(kept, place, batch_dims=1), log_p, -np.inf)
    return log_p - tf.reduce_logsumexp(log_p, axis=-1, keepdims=True)


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
          seeds: `[B, 2]` int32, one seed a row.
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
        seeds = tf.convert_to_tensor(seeds, tf.int32)
        checks.check_shape("seeds", seeds, [len(last), 2])
        tokens, state = self._program(
            tf.constant(last, tf.int32),
            state,
            tf.constant(count, tf.int32),
            seeds,
            tf.constant(begun, tf.int32),
            None if seen is None else tf.constant(seen),
            sampling.as_tensors(),
        )
        return tokens.numpy()[:count], state

    def _draw(
        self,
        last: tf.Tensor,
        state: State,
        count: tf.Tensor,
        seeds: Seed,
        begun: tf.Tensor,
        seen: tf.Tensor | None,
        settings: dict[str, tf.Tensor],
    ) -> tuple[tf.Tensor, State]:
        rows = last.shape[0]
        outputs, after = self._model(last[None], state)
        size = outputs.shape[-1]
        seen = tf.zeros([rows, size], tf.bool) if seen is None else seen
        seen |= tf.one_hot(last, size, on_value=True, off_value=False, dtype=tf.bool)
        tokens = tf.zeros([self._most, rows], tf.int32)

        def draw(k: tf.Tensor, logits: tf.Tensor, seen: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            log_p = log_probabilities(logits, seen, settings)
            keys = tf.stack([fold_in(seeds[row], begun + k) for row in range(rows)])
            uniform = tf.stack(
                [
                    tf.random.stateless_uniform([size], keys[row], alg="philox")
                    for row in range(rows)
                ]
            )
            gumbel = -tf.math.log(-tf.math.log(tf.maximum(uniform, 1e-38)))
            token = tf.argmax(log_p + gumbel, axis=-1, output_type=tf.int32)
            one_hot = tf.one_hot(token, size, on_value=True, off_value=False, dtype=tf.bool)
            return token, seen | one_hot

        def turn(k: tf.Tensor, token: tf.Tensor, state: State, seen: tf.Tensor, tokens: tf.Tensor):
            outputs, state = self._model(token[None], state)
            token, seen = draw(k, outputs[0], seen)
            tokens = tf.tensor_scatter_nd_update(tokens, [[k]], token[None])
            return k + 1, token, state, seen, tokens

        token, seen = draw(tf.constant(0), outputs[0], seen)
        tokens = tf.tensor_scatter_nd_update(tokens, [[0]], token[None])
        _, _, after, _, tokens = tf.while_loop(
            lambda k, *_: k < count,
            turn,
            (tf.constant(1), token, after, seen, tokens),
            parallel_iterations=1,
        )
        return tokens, after
