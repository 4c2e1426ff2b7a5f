"""`Forecaster`: forecasts that go on by themselves, with their uncertainty, as sampled paths."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tbptt import checks
from tbptt.serving.streamer import Streamer
from tbptt.state import take_rows
from tbptt.streams.series import Standardizer
from tbptt.types import Model, State


def quantiles(paths: np.ndarray, levels: Sequence[float] = (0.05, 0.5, 0.95)) -> np.ndarray:
    """Returns quantiles over sampled paths `[P, H, C]`: `[H, len(levels), C]`.

    Example:
      >>> quantiles(np.arange(11.0).reshape([11, 1, 1]), [0.1, 0.5])[0, :, 0].tolist()
      [1.0, 5.0]
    """
    for level in levels:
        if not 0 <= level <= 1:
            raise ValueError(f"levels ({list(levels)}) must be from 0 to 1.")
    return np.quantile(paths, levels, axis=0).swapaxes(0, 1)


class Forecaster:
    """Samples paths: each next line is drawn from the model's output, and is its next input.

    A model with two outputs a column, trained with `gaussian_nll`, gives a normal distribution,
    from which a line is drawn. A model with one output a column gives a value; one of the
    `residuals` is added to it, drawn with replacement (bootstrap).

    The model reads and predicts all C columns, one line ahead, and has the inputs of a
    `SeriesStream` with the same `changes` and `masked`. Values are in their own units.

    Example: persistence, with errors of one up or down.
      >>> class Persistence(tf.Module):
      ...     def initial_state(self, rows):
      ...         return tf.zeros([rows, 0])
      ...     def __call__(self, inputs, state):
      ...         return inputs, state
      >>> forecaster = Forecaster(Persistence(), 1, residuals=[[-1.0], [1.0]], jit_compile=False)
      >>> paths = forecaster([[5.0], [7.0]], horizon=3)
      >>> paths.shape, np.unique(paths[:, 0]).tolist(), np.unique(paths[:, 1]).tolist()
      ((1000, 3, 1), [6.0, 8.0], [5.0, 7.0, 9.0])
    """

    def __init__(
        self,
        model: Model,
        columns: int,
        *,
        standardizer: Standardizer | None = None,
        residuals: Any = None,
        changes: bool = False,
        masked: bool = False,
        paths: int = 1000,
        jit_compile: bool = True,
    ) -> None:
        """Creates a forecaster.

        Args:
          model: its outputs are `[T, B, 2 C]`, means and logarithms of standard deviations, or,
            with `residuals`, values `[T, B, C]`.
          columns: C.
          standardizer: of the stream that the model was trained on. None: nothing is standardized.
          residuals: `[N, C]`, errors `truth - forecast` of forecasts one line ahead, in the units
            of the data, best of a part that the model was not trained on.
          changes, masked: whether the inputs have changes, and which values are present, as in the
            stream that the model was trained on.
          paths: P, the number of paths. A quantile at level p of density f has a sampling error of
            about `sqrt(p (1 - p) / P) / f`.
          jit_compile: whether XLA compiles the loop, once a horizon.

        Raises:
          ValueError: sizes do not fit, or residuals are not finite.
        """
        checks.check_at_least("columns", columns, 1)
        checks.check_at_least("paths", paths, 1)
        if standardizer is not None and len(standardizer.mean) != columns:
            raise ValueError(
                f"The standardizer is of {len(standardizer.mean)} columns, and the forecasts of "
                f"{columns}. A model that feeds itself predicts every column that it reads."
            )
        self._model, self._columns, self._paths = model, columns, paths
        self._standardizer = standardizer or Standardizer(np.zeros(columns), np.ones(columns))
        self._changes, self._masked = changes, masked
        self._residuals = None
        if residuals is not None:
            residuals = np.asarray(residuals, np.float64)
            checks.check_shape("residuals", residuals, [None, columns])
            if not (len(residuals) and np.isfinite(residuals).all()):
                raise ValueError("residuals must be finite, and at least one line of them.")
            self._residuals = residuals / self._standardizer.deviation
        self._streamer = Streamer(model, capacity=1, batch_sizes=[1], jit_compile=jit_compile)
        self._program = tf.function(self._run, autograph=False, jit_compile=jit_compile)

    def __call__(
        self, history: Any, horizon: int, *, seed: int = 0, state: State | None = None
    ) -> np.ndarray:
        """Reads a history, and samples how it may go on.

        Args:
          history: `[N, C]`, the last lines, N >= 1; NaN is a missing value, as in the stream.
          horizon: H, the number of lines to sample.
          seed: >= 0; the same seed gives the same paths.
          state: the state before `history`, leaves `[1, ...]`. None: the initial state.

        Returns:
          Paths, `[P, H, C]`; see `quantiles`.

        Raises:
          ValueError: the history or the model's outputs do not fit, or paths do not stay finite.
        """
        checks.check_at_least("horizon", horizon, 1)
        lines = self._standardizer.apply(np.asarray(history, np.float64))
        checks.check_shape("history", lines, [None, self._columns])
        outputs, after = self._read(self._inputs(lines), state)
        noise = self._noise(np.random.default_rng(seed), horizon, len(outputs))
        fed = np.where(np.isnan(lines[-1]), 0.0, lines[-1]).astype(np.float32)
        program_inputs = map(tf.constant, (outputs, fed, ~np.isnan(lines[-1]), noise))
        paths = self._program(after, *program_inputs).numpy().swapaxes(0, 1)
        finite = np.isfinite(paths).all(axis=(1, 2))
        if not finite.all():
            raise ValueError(
                f"{(~finite).sum()} of {self._paths} paths are not finite: the model's own outputs "
                "lead it away from what it has learnt. Use a shorter horizon, or train it longer."
            )
        return self._standardizer.undo(paths.astype(np.float64), range(self._columns))

    def _inputs(self, lines: np.ndarray) -> np.ndarray:
        """Returns the inputs of standardized lines, `[N, D]`, as a `SeriesStream` gives them."""
        there = ~np.isnan(lines)
        values = np.where(there, lines, 0.0).astype(np.float32)
        parts = [values]
        if self._changes:
            parts.append(np.diff(values, axis=0, prepend=values[:1]))
            parts[-1][1:][~(there[1:] & there[:-1])] = 0.0
        if self._masked:
            parts.append(there.astype(np.float32))
        return np.concatenate(parts, axis=-1)

    def _read(self, inputs: np.ndarray, state: State | None) -> tuple[np.ndarray, State]:
        """Returns the outputs after the last line, `[O]`, and the state, leaves `[1, ...]`."""
        self._streamer.open("history")
        try:
            if state is not None:
                self._streamer.set_state("history", state)
            outputs = self._streamer.feed("history", inputs)
            return outputs[-1].astype(np.float32), self._streamer.state("history")
        finally:
            self._streamer.close("history")

    def _noise(self, rng: np.random.Generator, horizon: int, outputs: int) -> np.ndarray:
        """Returns what is added at each step, `[H, P, C]`: normal numbers, or residuals.

        Raises:
          ValueError: the model has not the number of outputs that it must have.
        """
        shape, columns = [horizon, self._paths], self._columns
        if self._residuals is not None and outputs == columns:
            chosen = rng.integers(len(self._residuals), size=shape)
            return self._residuals[chosen].astype(np.float32)
        if self._residuals is None and outputs == 2 * columns:
            return rng.standard_normal([*shape, columns], np.float32)
        advice = (
            "A model of values alone does not say how uncertain they are: give residuals, its "
            "errors on a validation part, or train it with gaussian_nll."
            if outputs == columns
            else "Leave out residuals: they are for a model of values alone."
            if outputs == 2 * columns
            else "A model that feeds itself predicts every column that it reads, one line ahead."
        )
        raise ValueError(
            f"The model has {outputs} outputs for {columns} columns, but must have "
            f"{columns} with residuals, or {2 * columns} without. {advice}"
        )

    def _run(
        self, state: State, outputs: tf.Tensor, last: tf.Tensor, there: tf.Tensor, noise: tf.Tensor
    ) -> tf.Tensor:
        """Draws `[H, P, C]`, standardized; `outputs`, `last` and `there` are of one row."""
        horizon, rows, columns = noise.shape
        known = tf.repeat(tf.cast(there, tf.float32)[None], rows, axis=0)

        def turn(
            k: tf.Tensor, outputs: tf.Tensor, last: tf.Tensor, known: tf.Tensor, state: State,
            paths: tf.Tensor,
        ) -> tuple[Any, ...]:  # fmt: skip
            drawn = outputs[:, :columns]
            if self._residuals is None:
                drawn += tf.exp(outputs[:, columns:]) * noise[k]
            else:
                drawn += noise[k]
            parts = [drawn]
            parts += [(drawn - last) * known] if self._changes else []
            parts += [tf.ones_like(drawn)] if self._masked else []
            paths = tf.tensor_scatter_nd_update(paths, [[k]], drawn[None])
            outputs, state = self._model(tf.concat(parts, axis=-1)[None], state)
            outputs = tf.cast(outputs[0], tf.float32)
            return k + 1, outputs, drawn, tf.ones_like(known), state, paths

        loop = (
            tf.constant(0),
            tf.repeat(outputs[None], rows, axis=0),
            tf.repeat(last[None], rows, axis=0),
            known,
            take_rows(state, np.zeros(rows, np.int64)),
            tf.zeros(noise.shape),
        )
        return tf.while_loop(lambda k, *_: k < horizon, turn, loop, parallel_iterations=1)[-1]
