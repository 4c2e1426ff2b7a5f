"""Loss over a whole stream, with a state of its own."""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tbptt import losses
from tbptt.distribution import Replicas
from tbptt.optimizers.transform import GradientTransform
from tbptt.streams.feed import Chunk, open_feed
from tbptt.training import window as one
from tbptt.training.actions import progress_bar
from tbptt.training.programs import fold, make_program
from tbptt.training.window import Carry, ContinuityError
from tbptt.types import Cursor, Loss, Model, State, Stream, Window

TOLD = ("loss", "weight", "broken")  # what a call adds up, in the order of a row of it


class Evaluation(NamedTuple):
    """The loss of a model on a whole stream.

    Attributes:
      loss_sum: over every target of the stream, in nats.
      weight_sum: how many there are.
    """

    loss_sum: float
    weight_sum: float

    @property
    def loss(self) -> float:
        """Nats a target. Raises ValueError if there is no target that counts."""
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
        """Bits a target: bits per character where a token is a character."""
        return losses.bits(self.loss)


class Evaluator:
    """Scores every target of a stream exactly once; training cannot notice.

    The state begins anew with every call and is carried from window to window, so the figure
    does not depend on the window length. It depends on the number of rows, because so many
    rows begin with nothing remembered: one row gives the figure of the text itself.

    With an optimizer it evaluates dynamically: every window is scored, and then learned from,
    without dropout, before the next one is scored. So the model follows what it reads, as new
    names in a text, and each target is still scored by what came before it alone. Parameters and
    slots are put back in the end. That figure depends on the window length.

    Args:
      model: what to score; its parameters are read at every call.
      loss: `(outputs, targets) -> [T, B]`. None: the model scores its windows itself.
      stream: with `tail="pad"`, or it leaves targets out.
      windows_per_call: as in training.
      optimizer: what to learn with on the way; None: nothing is learned.
      replicas: who scores, each its own rows, in whose `scope()` the model was made; all their
        processes ask at the same time. None: this device scores all rows.
      jit_compile: whether XLA compiles the loop.

    Example:
      >>> stream = ContiguousStream(np.arange(8), rows=1, window_length=5, vocabulary_size=8,
      ...                           tail="pad")
      >>> model = LanguageModel(8, 3, LSTM(3, 4, seed=make_seed(0)), seed=make_seed(1))
      >>> Evaluator(model, cross_entropy, stream, jit_compile=False)().weight_sum
      7.0

    Reference: Krause, Kahembwe, Murray & Renals (2018), Dynamic evaluation of neural sequence
      models.
    """

    def __init__(
        self,
        model: Model,
        loss: Loss | None,
        stream: Stream,
        *,
        windows_per_call: int = 64,
        optimizer: GradientTransform | None = None,
        replicas: Replicas | None = None,
        jit_compile: bool = True,
    ) -> None:
        one.check_scores(model, loss)
        self._model = model
        self._loss = loss
        self._stream = stream
        self._replicas = replicas or Replicas()
        self._feed = open_feed(
            stream, min(windows_per_call, stream.windows_per_epoch), replicas=self._replicas
        )
        self._optimizer = optimizer
        self._learned: list[tf.Variable] = []
        if optimizer is not None:
            values = [tf.convert_to_tensor(parameter) for parameter in model.trainable_variables]
            self._slots = tf.nest.map_structure(
                lambda value: tf.Variable(value, trainable=False), optimizer.init(values)
            )
            self._step = tf.Variable(0, dtype=tf.int64, trainable=False)
            slots = tf.nest.flatten(self._slots)
            self._learned = [self._step, *slots, *model.trainable_variables]
        score = make_program(self._score, jit_compile=jit_compile)
        strategy = self._replicas.strategy
        self._program = score
        if strategy is not None:
            if optimizer is not None:
                raise ValueError("One device evaluates dynamically: leave out replicas.")
            self._replicas.check_copies(model.trainable_variables)
            self._program = tf.function(
                # Not of `score` itself: of a tf.function it makes one trace for all replicas.
                lambda *given: strategy.run(lambda *its: score(*its), given),
                autograph=False,
            )

    def __call__(self) -> Evaluation:
        """The figures of one epoch of the stream.

        Raises:
          ContinuityError: the stream's windows do not continue each other.
        """
        with self._put_back():
            return self._evaluate()

    def _evaluate(self) -> Evaluation:
        carry = self._replicas.deal(one.initial_carry(self._model, self._stream.rows))
        cursor, left = Cursor(), self._stream.windows_per_epoch
        sums = np.zeros([len(TOLD)])
        bar = progress_bar(left, label="evaluation", delay=2.0)
        while left > 0:
            count = min(self._feed.windows_per_call, left)
            chunk, following = self._feed.take(cursor, count)
            carry, told = self._program(carry, chunk)
            sums += np.asarray(self._replicas.local(told), np.float64).sum(axis=0)
            if sums[TOLD.index("broken")]:
                raise ContinuityError(
                    f"The evaluation stream does not continue somewhere in the {count} windows "
                    f"from {cursor} on. Give each row the tokens that follow its last ones."
                )
            cursor, left = following, left - count
            bar.update(count)
        bar.close()
        loss_sum, weight_sum, _ = self._replicas.sum(*map(float, sums))
        return Evaluation(loss_sum, weight_sum)

    @property
    def traces(self) -> int:
        """How often the program was traced."""
        return int(self._program.experimental_get_tracing_count())

    def _score(self, carry: Carry, chunk: Chunk) -> tuple[Carry, tf.Tensor]:
        return fold(chunk, self._score_window, (carry, tf.zeros([1, len(TOLD)])))

    def _score_window(
        self, window: Window, carried: tuple[Carry, tf.Tensor]
    ) -> tuple[Carry, tf.Tensor]:
        carry, told = carried
        broken = ~one.continues(window, carry.position)
        if self._optimizer is None:
            state = one.begin(self._model, window, carry.state)
            step_losses, _, state = one.score(
                self._model, self._loss, window, state, training=False, seed=None
            )
            loss_sum, weight_sum = losses.weighted_sum(step_losses, window.weight)
        else:
            state, loss_sum, weight_sum = self._learn(self._optimizer, window, carry.state)
        of_window = [tf.cast(part, tf.float32) for part in (loss_sum, weight_sum, broken)]
        position = one.position_after(window, carry.position)
        return Carry(state, position, carry.skipped_in_a_row), told + tf.stack(of_window)

    def _learn(
        self, optimizer: GradientTransform, window: Window, state: State
    ) -> tuple[State, tf.Tensor, tf.Tensor]:
        """State, loss and weight of a window, which is learned from after that."""
        result = one.window_gradients(
            self._model, self._loss, "mean", window, state, seed=None, training=False
        )
        finite, _ = one.is_finite(result)
        one.update(
            optimizer,
            self._model.trainable_variables,
            self._slots,
            result.gradients,
            tf.convert_to_tensor(self._step),
            accept=finite,
        )
        self._step.assign_add(1)
        return result.state, result.loss_sum, result.weight_sum

    @contextlib.contextmanager
    def _put_back(self) -> Iterator[None]:
        """What is learned on the way is forgotten in the end, by whatever way that comes."""
        before = [variable.numpy() for variable in self._learned]
        try:
            yield
        finally:
            for variable, value in zip(self._learned, before, strict=True):
                variable.assign(value)
