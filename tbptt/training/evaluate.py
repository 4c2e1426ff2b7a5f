"""Evaluates a model on a whole stream, with a recurrent state of its own.

Evaluation never touches the state of training: every call starts from the initial state. Dynamic
evaluation, which updates the parameters while it reads, restores them at the end.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tbptt import losses
from tbptt.distribution import Replicas
from tbptt.optimizers.transform import GradientTransform
from tbptt.streams.feed import Chunk, open_feed
from tbptt.training.actions import progress_bar
from tbptt.training.programs import fold, make_program, trace_window
from tbptt.training.window import (
    LOSS,
    ContinuityError,
    LoopState,
    WindowGradients,
    apply_update,
    check_model,
    continues,
    initial_loop_state,
    is_finite,
    offset_after,
    start_state,
    window_gradients,
    window_sums,
)
from tbptt.types import Cursor, Model, State, Stream, Window


class Evaluation(NamedTuple):
    """The result of an evaluation: loss and metrics of a model on a whole stream.

    Attributes:
      sums: sum and weight, by name, of the loss over every target of the stream, in nats, and of
        the model's own metrics.
    """

    sums: Mapping[str, tuple[float, float]]

    @property
    def loss_sum(self) -> float:
        """The sum of the loss over every target of the stream, in nats."""
        return self.sums[LOSS][0]

    @property
    def weight_sum(self) -> float:
        """The sum of the weights: the number of targets, if each has weight 1."""
        return self.sums[LOSS][1]

    @property
    def metrics(self) -> dict[str, float]:
        """The mean of each of the model's own metrics; NaN where the weight is 0."""
        return {
            name: total / weight if weight else math.nan
            for name, (total, weight) in self.sums.items()
            if name != LOSS
        }

    @property
    def loss(self) -> float:
        """The loss in nats per target; raises ValueError if no target has a weight."""
        if not self.weight_sum:
            raise ValueError(
                "Nothing was scored: every weight of the stream is 0. Evaluate on a stream that "
                "has targets."
            )
        return self.loss_sum / self.weight_sum

    @property
    def perplexity(self) -> float:
        """The exponential of the loss, `exp(loss)`."""
        return losses.perplexity(self.loss)

    @property
    def bits(self) -> float:
        """The loss in bits per target: bits per character where a token is a character."""
        return losses.bits(self.loss)


class Evaluator:
    """Computes a model's loss and metrics on a stream, every target exactly once.

    Every call starts from the initial state and carries the state from window to window, so the
    result does not depend on the window length. It depends on the number of rows, because each
    row starts without context: a single row gives the loss of the text itself.

    With an optimizer, this is dynamic evaluation: every window is scored and then trained on,
    without dropout, before the next one is scored. So the model adapts to what it reads, as new
    names in a text, and each target is still scored by the text before it alone. Parameters and
    optimizer state are restored at the end. That result depends on the window length.

    Args:
      model: the model to evaluate; its parameters are read at every call.
      stream: with `tail="pad"`; without, the targets of a short last window are left out.
      windows_per_call: the number of windows in one compiled call, as in training.
      optimizer: the optimizer of dynamic evaluation. None: the parameters stay as they are.
      replicas: the devices that evaluate, each its own rows; the model must have been made in
        their `scope()`, and all processes must call at the same time. None: this device alone.
      jit_compile: whether XLA compiles the loop.

    Example:
      >>> stream = ContiguousStream(np.arange(8), rows=1, window_length=5, vocabulary_size=8,
      ...                           tail="pad")
      >>> model = LanguageModel(8, 3, LSTM(3, 4, seed=make_seed(0)), seed=make_seed(1))
      >>> Evaluator(model, stream, jit_compile=False)().weight_sum
      7.0

    Reference: Krause, Kahembwe, Murray & Renals (2018), Dynamic evaluation of neural sequence
      models.
    """

    def __init__(
        self,
        model: Model,
        stream: Stream,
        *,
        windows_per_call: int = 64,
        optimizer: GradientTransform | None = None,
        replicas: Replicas | None = None,
        jit_compile: bool = True,
    ) -> None:
        check_model(model)
        self._model = model
        self._names: tuple[str, ...] = ()
        self._stream = stream
        self._replicas = replicas or Replicas()
        self._feed = open_feed(
            stream, min(windows_per_call, stream.windows_per_epoch), replicas=self._replicas
        )
        self._optimizer = optimizer
        self._learned: list[tf.Variable] = []
        if optimizer is not None:
            values = [tf.convert_to_tensor(parameter) for parameter in model.trainable_variables]
            self._opt_state = tf.nest.map_structure(
                lambda value: tf.Variable(value, trainable=False), optimizer.init(values)
            )
            self._step = tf.Variable(0, dtype=tf.int64, trainable=False)
            opt_state = tf.nest.flatten(self._opt_state)
            self._learned = [self._step, *opt_state, *model.trainable_variables]
        score = make_program(self._score, jit_compile=jit_compile)
        strategy = self._replicas.strategy
        self._program = score
        if strategy is not None:
            if optimizer is not None:
                raise ValueError("One device evaluates dynamically: leave out replicas.")
            self._replicas.check_copies(model.trainable_variables)
            self._program = tf.function(
                # Given `score` itself, a tf.function, `run` would trace it once for all replicas.
                lambda *given: strategy.run(lambda *its: score(*its), given),
                autograph=False,
            )

    def __call__(self) -> Evaluation:
        """Evaluates the model on one epoch of the stream.

        Raises:
          ContinuityError: the stream's windows do not continue each other.
        """
        with self._put_back():
            return self._evaluate()

    def _evaluate(self) -> Evaluation:
        loop_state = self._replicas.scatter(initial_loop_state(self._model, self._stream.rows))
        cursor, left = Cursor(), self._stream.windows_per_epoch
        sums: Any = 0.0
        bar = progress_bar(left, label="evaluation", delay=2.0)
        while left > 0:
            count = min(self._feed.windows_per_call, left)
            chunk, following = self._feed.take(cursor, count)
            loop_state, of_call = self._program(loop_state, chunk)
            sums += np.asarray(self._replicas.local(of_call), np.float64).sum(axis=0)
            if sums[-1]:
                raise ContinuityError(
                    f"The evaluation stream does not continue somewhere in the {count} windows "
                    f"from {cursor} on. Give each row the tokens that follow its last ones."
                )
            cursor, left = following, left - count
            bar.update(count)
        bar.close()
        *flat, _ = self._replicas.sum(*map(float, sums))
        pairs = zip(flat[::2], flat[1::2], strict=True)
        return Evaluation(dict(zip(self._names, pairs, strict=True)))

    @property
    def traces(self) -> int:
        """The number of times that the program was traced."""
        return int(self._program.experimental_get_tracing_count())

    def _score(self, loop_state: LoopState, chunk: Chunk) -> tuple[LoopState, tf.Tensor]:
        traced = trace_window(self._measure, chunk.windows, loop_state.state)
        self._names = tuple(traced.outputs.sums)

        def score_window(
            window: Window, carried: tuple[LoopState, tf.Tensor]
        ) -> tuple[LoopState, tf.Tensor]:
            loop_state, total = carried
            broken = ~continues(window, loop_state.offset)
            result = traced.call(window, loop_state.state)
            self._learn(result)
            parts = [part for name in self._names for part in result.sums[name]]
            of_window = [tf.cast(part, tf.float32) for part in (*parts, broken)]
            offset = offset_after(window, loop_state.offset)
            loop_state = loop_state._replace(state=result.state, offset=offset)
            return loop_state, total + tf.stack(of_window)

        # [1, 2N + 1]: sum and weight of each name, and the number of broken windows.
        return fold(chunk, score_window, (loop_state, tf.zeros([1, 2 * len(self._names) + 1])))

    def _measure(self, window: Window, state: State) -> WindowGradients:
        """Returns the sums of a window, and its gradients if there is an optimizer."""
        if self._optimizer is not None:
            return window_gradients(self._model, "mean", window, state, seed=None, training=False)
        state = start_state(self._model, window, state)
        window_loss, state = self._model.loss(window, state, training=False, seed=None)
        return WindowGradients([], state, window_sums(window_loss, window.weight))

    def _learn(self, result: WindowGradients) -> None:
        """Updates the parameters by a window that was scored; does nothing without an optimizer."""
        if self._optimizer is None:
            return
        finite, _ = is_finite(result)
        apply_update(
            self._optimizer,
            self._model.trainable_variables,
            self._opt_state,
            result.gradients,
            tf.convert_to_tensor(self._step),
            accept=finite,
        )
        self._step.assign_add(1)

    @contextlib.contextmanager
    def _put_back(self) -> Iterator[None]:
        """Restores parameters and optimizer state at the end of the block, also after an error."""
        before = [variable.numpy() for variable in self._learned]
        try:
            yield
        finally:
            for variable, value in zip(self._learned, before, strict=True):
                variable.assign(value)
