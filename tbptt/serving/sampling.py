"""`Sampler`: draws tokens from a language model with temperature, top-k, nucleus and penalties."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tbptt import checks
from tbptt.serving.drawing import draw, probabilities, uniforms
from tbptt.state import select, take_rows
from tbptt.types import Model, State

CHUNK = 64  # tokens of a prompt that are read at once


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


class Sampler:
    """Draws tokens one after another, each drawn token being the next input, for B rows.

    One program of a fixed number of rows serves all settings, seeds, stop tokens, numbers of tokens
    and of rows: fewer rows are filled up, and more run in several batches. So a row's tokens are
    the same to the bit whoever else is drawn with it: they depend on its state, its seed and how
    many it has drawn. (Programs of different sizes would differ in the last bits of the logits,
    which now and then changes a token.) Eight rows take hardly more time than one.

    Example:
      >>> model = LanguageModel(5, 3, LSTM(3, 4, seed=make_seed(0)), seed=make_seed(1))
      >>> sampler = Sampler(model, jit_compile=False)
      >>> tokens = sampler.sample([1, 2, 4], 6, seeds=[[0, 1], [0, 2], [0, 1]])
      >>> tokens.shape, np.array_equal(tokens[:, 0], tokens[:, 2])
      ((6, 3), True)
    """

    def __init__(
        self, model: Model, *, most: int = 256, rows: int = 8, jit_compile: bool = True
    ) -> None:
        """Creates a sampler; nothing is traced yet.

        Args:
          model: a model that reads ids `[T, B]`, and whose outputs are logits `[T, B, V]`.
          most: the largest number of tokens of one call of the program.
          rows: the number of rows that the program runs at once. Samplers with the same number
            draw the same tokens.
          jit_compile: whether XLA compiles the loop.
        """
        checks.check_at_least("most", most, 1)
        checks.check_at_least("rows", rows, 1)
        self._model, self._most, self._rows = model, most, rows
        self._program = tf.function(self._draw, autograph=False, jit_compile=jit_compile)
        self._reading = tf.function(self._read, autograph=False, jit_compile=jit_compile)
        self._known_size = getattr(model, "vocabulary_size", None)

    @property
    def traces(self) -> int:
        """The number of times that the program was traced, which is one at most."""
        return int(self._program.experimental_get_tracing_count())

    @property
    def vocabulary_size(self) -> int:
        """V, the number of tokens that the model knows."""
        if self._known_size is None:
            outputs, _ = self._model(tf.zeros([1, 1], tf.int32), self._model.initial_state(1))
            self._known_size = int(outputs.shape[-1])
        return self._known_size

    def sample(
        self,
        prompt: Any,
        length: int,
        seeds: Any,
        sampling: Sampling = Sampling(),
        *,
        stop: Sequence[int] = (),
    ) -> np.ndarray:
        """Reads a prompt, and returns tokens that follow it, `[length, B]`; see `write`."""
        return np.concatenate(list(self.write(prompt, length, seeds, sampling, stop=stop)))

    def write(
        self,
        prompt: Any,
        length: int,
        seeds: Any,
        sampling: Sampling = Sampling(),
        *,
        stop: Sequence[int] = (),
        piece: int | None = None,
    ) -> Iterator[np.ndarray]:
        """Reads a prompt, and draws tokens that follow it, piece by piece while they are made.

        Args:
          prompt: `[N]` ids, N >= 1.
          length: the number of tokens to draw, 1 or more.
          seeds: `[B, 2]` integers: one sample for each seed.
          sampling: see `Sampling`; the tokens of the prompt count as read.
          stop: ids at which a sample ends; what follows in its row is -1.
          piece: the number of tokens that come at once, at most `most`. None: `most`.

        Yields:
          Tokens `[n, B]`, until there are `length`. Once all samples have ended, the rest is -1.

        Raises:
          ValueError: an argument cannot be used.
        """
        checks.check_at_least("length", length, 1)
        piece = self._most if piece is None else piece
        checks.check_between("piece", piece, 1, self._most + 1)
        seeds = np.asarray(seeds)
        checks.check_shape("seeds", seeds, [None, 2])
        state, stop_at = self.read(prompt), self._marked("stop", stop)
        seen = np.repeat(self._marked("prompt", prompt)[None], len(seeds), axis=0)

        def pieces() -> Iterator[np.ndarray]:
            nonlocal state
            last = np.repeat(np.asarray(prompt)[-1:], len(seeds))
            for begun in range(0, length, piece):
                count = min(piece, length - begun)
                if (last < 0).all():
                    yield np.full([count, len(seeds)], -1, np.int32)
                    continue
                tokens, state = self(
                    last, state, count, seeds, sampling, seen=seen, begun=begun, stop=stop
                )
                for row, drawn in enumerate(tokens.T):
                    seen[row, drawn[drawn >= 0]] = True
                last = np.where((tokens[-1] >= 0) & stop_at[tokens[-1]], -1, tokens[-1])
                yield tokens

        return pieces()

    def read(self, prompt: Any) -> State:
        """Reads a prompt `[N]` but for its last token, from the initial state, as one row.

        Returns:
          The state before the last token, leaves `[1, ...]`; token and state are what drawing
          begins with.

        Raises:
          ValueError: the prompt is empty, or an id is not in the vocabulary.
        """
        ids = np.asarray(prompt)
        checks.check_shape("prompt", ids, [None])
        checks.check_at_least("length of the prompt", len(ids), 1)
        self._marked("prompt", ids)
        state, begin = self._model.initial_state(1), 0
        while begin < len(ids) - 1:
            count = min(CHUNK, len(ids) - 1 - begin)
            chunk = np.zeros([CHUNK, 1], np.int32)
            chunk[:count, 0] = ids[begin : begin + count]
            state = self._reading(tf.constant(chunk), tf.constant(count), state)
            begin += count
        return state

    def __call__(
        self,
        last: Any,
        state: State,
        count: int,
        seeds: Any,
        sampling: Sampling = Sampling(),
        *,
        seen: np.ndarray | None = None,
        begun: int = 0,
        stop: Sequence[int] = (),
    ) -> tuple[np.ndarray, State]:
        """Reads `last`, and draws `count` tokens for each row.

        Args:
          last: `[B]` ids: the last token of each row, which the model has not read yet; -1 for a
            row that has ended, which draws nothing.
          state: before `last`, leaves `[B, ...]`. State and `last` may have one row alone, from
            which all go on.
          count: tokens to draw, 1 <= count <= most.
          seeds: `[B, 2]` integers, one seed a row.
          sampling: see `Sampling`.
          seen: `[B, V]` bool: tokens that `repetition_penalty` counts as repeated, with `last` and
            those that are drawn. None: no others.
          begun: tokens that were drawn in earlier calls with these seeds.
          stop: ids that end a row: the token is drawn, and all later ones are -1.

        Returns:
          Tokens `[count, B]`, and the state before the last token of each row, which an ended row
          keeps: `tokens[-1]` and this state go on.

        Raises:
          ValueError: `count`, `last`, `seeds` or `stop` cannot be used.
        """
        checks.check_between("count", count, 1, self._most + 1)
        seeds, last = np.asarray(seeds), np.asarray(last)
        checks.check_shape("seeds", seeds, [None, 2])
        checks.check_at_least("number of seeds", len(seeds), 1)
        rows = len(seeds)
        last = np.repeat(last, rows) if last.shape == (1,) else last
        checks.check_shape("last", last, [None])
        if len(last) != rows:
            raise ValueError(f"There are {rows} seeds, but last has {len(last)} ids: one a row.")
        if not ((last >= -1) & (last < self.vocabulary_size)).all():
            raise ValueError(
                f"last ({last.tolist()}) must be ids from 0 to {self.vocabulary_size - 1}, or -1 "
                "for a row that has ended."
            )
        state_rows = len(tf.nest.flatten(state)[0])
        if state_rows not in (1, rows):
            raise ValueError(
                f"state has {state_rows} rows, but must have one for each of the {rows} seeds, or "
                "a single one that all go on from."
            )
        if seen is None:
            seen = np.zeros([rows, self.vocabulary_size], bool)
        checks.check_shape("seen", seen, [rows, self.vocabulary_size])
        stop_at = tf.constant(self._marked("stop", stop))
        numbers, settings = uniforms(seeds, begun, count), sampling.as_tensors()
        found = []
        for first in range(0, rows, self._rows):
            some = np.arange(first, min(first + self._rows, rows))
            found.append(self._batch(some, last, state, count, numbers, seen, stop_at, settings))
        tokens, states = zip(*found, strict=True)
        join = tf.nest.map_structure(lambda *parts: tf.concat(parts, 0), *states)
        return np.concatenate(tokens, axis=1), join

    def _batch(
        self,
        some: np.ndarray,
        last: np.ndarray,
        state: State,
        count: int,
        numbers: np.ndarray,
        seen: np.ndarray,
        stop_at: tf.Tensor,
        settings: dict[str, tf.Tensor],
    ) -> tuple[np.ndarray, State]:
        """Draws for rows `some`, with copies of the first, already ended, in the other places."""
        filled = np.concatenate([some, np.repeat(some[:1], self._rows - len(some))])
        state_rows = len(tf.nest.flatten(state)[0])
        begin = np.where(np.arange(self._rows) < len(some), last[filled], -1)
        of_program = np.zeros([self._most, self._rows], np.float32)
        of_program[:count] = numbers[:, filled]
        tokens, after = self._program(
            tf.constant(begin, tf.int32),
            take_rows(state, filled % state_rows),
            tf.constant(count, tf.int32),
            tf.constant(of_program),
            tf.constant(seen[filled]),
            stop_at,
            settings,
        )
        return tokens.numpy()[:count, : len(some)], take_rows(after, np.arange(len(some)))

    def _marked(self, name: str, ids: Any) -> np.ndarray:
        """Returns `[V]` bool: True at these ids; raises ValueError if one is no token."""
        ids = np.asarray(ids)
        for wrong in ids[(ids < 0) | (ids >= self.vocabulary_size) | (ids != np.floor(ids))]:
            raise ValueError(
                f"{name} has {wrong}, but must hold ids from 0 to {self.vocabulary_size - 1}."
            )
        marked = np.zeros([self.vocabulary_size], bool)
        marked[ids.astype(np.int64)] = True
        return marked

    def _read(self, ids: tf.Tensor, count: tf.Tensor, state: State) -> State:
        """Reads the first `count` of `ids [CHUNK, 1]`, one after another."""
        _, state = tf.while_loop(
            lambda k, _: k < count,
            lambda k, state: (k + 1, self._model(tf.gather(ids, [k]), state)[1]),
            (tf.constant(0), state),
            parallel_iterations=1,
        )
        return state

    def _draw(
        self,
        last: tf.Tensor,
        state: State,
        count: tf.Tensor,
        numbers: tf.Tensor,
        seen: tf.Tensor,
        stop_at: tf.Tensor,
        settings: dict[str, tf.Tensor],
    ) -> tuple[tf.Tensor, State]:
        """Reads `last` and draws; `numbers [most, R]` are uniform."""

        def turn(
            k: tf.Tensor, token: tf.Tensor, on: tf.Tensor, seen: tf.Tensor, tokens: tf.Tensor,
            state: State,
        ) -> tuple[Any, ...]:  # fmt: skip
            """Reads the last token of the rows that are going on, `on [R]`, and draws token k."""
            outputs, after = self._model(token[None], state)
            drawn = draw(probabilities(outputs[0], seen, settings), numbers[k])
            token = tf.where(on, drawn, token)
            tokens = tf.tensor_scatter_nd_update(tokens, [[k]], tf.where(on, drawn, -1)[None])
            going = on & ~tf.gather(stop_at, token)
            return k + 1, token, going, seen | marks(token), tokens, select(on, after, state)

        def marks(token: tf.Tensor) -> tf.Tensor:
            return tf.one_hot(token, seen.shape[1], on_value=True, off_value=False, dtype=tf.bool)

        tokens = tf.fill([self._most, last.shape[0]], -1)
        begun = (tf.constant(0), tf.maximum(last, 0), last >= 0, seen | marks(last), tokens, state)
        *_, tokens, state = tf.while_loop(
            lambda k, token, on, *_: (k < count) & tf.reduce_any(on),
            turn, begun, parallel_iterations=1,
        )  # fmt: skip
        return tokens, state
