"""`Trainer` holds parameters, optimizer state and step count, and trains K windows in one call."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import tensorflow as tf

from tbptt import checks
from tbptt.distribution import Replicas
from tbptt.losses import REDUCTIONS
from tbptt.optimizers.transform import GradientTransform
from tbptt.seeds import fold_in, make_seed
from tbptt.streams.feed import Chunk
from tbptt.training.average import Average
from tbptt.training.description import describe
from tbptt.training.loss_scale import LossScale
from tbptt.training.programs import fold, make_program, make_replicated_program, trace_window
from tbptt.training.window import (
    LOSS,
    LoopState,
    Sum,
    Sums,
    WindowGradients,
    apply_update,
    check_model,
    continues,
    find_fault,
    initial_loop_state,
    is_finite,
    offset_after,
    window_gradients,
)
from tbptt.types import Model, Window


class Metrics(NamedTuple):
    """The metrics of one call of K windows: tensors in the loop, plain numbers after `read`.

    Attributes:
      windows: int64, the number of windows trained.
      sums: sums of the loss, of the model's own metrics and of its penalty, by name, over the
        windows that were not skipped.
      grad_norm_sum, grad_norm_max: sum and maximum of the gradient norms of the same windows,
        before any clipping.
      skipped: int64, the number of windows whose loss or gradient was not finite.
      first_skipped: int64, the index in the call of the first skipped window, or -1.
      fault: int64, what was not finite in that window, see `window.find_fault`.
      broken: int64, the index of the first window that does not continue its rows, or -1.
    """

    windows: tf.Tensor
    sums: Sums
    grad_norm_sum: tf.Tensor
    grad_norm_max: tf.Tensor
    skipped: tf.Tensor
    first_skipped: tf.Tensor
    fault: tf.Tensor
    broken: tf.Tensor

    @classmethod
    def none(cls, names: Iterable[str]) -> "Metrics":
        """Returns the metrics of zero windows, given the names of the sums."""
        none, zero = tf.zeros([], tf.int64), tf.zeros([])
        sums = {name: Sum(zero, zero) for name in names}
        return cls(none, sums, zero, zero, none, none - 1, none - 1, none - 1)

    @property
    def loss(self) -> float:
        """The mean loss per counted step in nats, without penalties, as in an evaluation."""
        return self.means[LOSS]

    @property
    def means(self) -> dict[str, float]:
        """The mean of the loss and of every metric, by name; NaN where the weight is 0."""
        return {
            name: float(each.total / each.weight) if each.weight > 0 else float("nan")
            for name, each in self.sums.items()
        }

    @property
    def grad_norm_mean(self) -> float:
        """The mean gradient norm of a window, before clipping."""
        counted = self.windows - self.skipped
        return float(self.grad_norm_sum / counted) if counted > 0 else float("nan")

    def read(self) -> "Metrics":
        """Returns the metrics as Python numbers, which waits for the device: use it once a call."""
        return tf.nest.map_structure(lambda tensor: tensor.numpy().item(), self)


class Trainer(tf.Module):
    """Trains a model: `trainer(loop_state, chunk)` runs many windows in one call, with XLA or not.

    It holds parameters, optimizer state and step count. XLA compiles the loop unless
    `jit_compile=False`.

    Attributes:
      model: the model that is trained.
      step: int64 variable, the number of windows trained.
      opt_state: the optimizer's state, a nest of variables.
      average: the `Average` that was given, or None.
      loss_scale: the `LossScale` that was given, or None.
      jit_compile: whether XLA compiles the program.

    Example:
      >>> stream = ContiguousStream(np.arange(25) % 5, rows=2, window_length=4, vocabulary_size=5)
      >>> model = LanguageModel(5, 3, LSTM(3, 4, seed=make_seed(0)), seed=make_seed(1))
      >>> trainer = Trainer(model, sgd(0.1), jit_compile=False)
      >>> loop_state = trainer.initial_loop_state(stream.rows)
      >>> chunk, cursor = ResidentFeed(stream, windows_per_call=3).take(Cursor(), 3)
      >>> loop_state, metrics = trainer(loop_state, chunk)
      >>> metrics.read().windows, trainer.windows_seen, round(metrics.read().loss, 1)
      (3, 3, 1.6)
    """

    def __init__(
        self,
        model: Model,
        optimizer: GradientTransform,
        *,
        reduction: str = "mean",
        seed: int = 0,
        loss_scale: LossScale | None = None,
        average: Average | None = None,
        replicas: Replicas | None = None,
        jit_compile: bool = True,
    ) -> None:
        """Creates the optimizer state and the program, which is traced by the first call.

        Args:
          model: a `Model` and `tf.Module`; its `loss` is minimised.
          optimizer: a transform, see `optimizers.transform`.
          reduction: how a window's loss becomes the scalar that is differentiated, see
            `losses.reduce`.
          seed: the seed of all randomness in training, together with the step.
          loss_scale: loss scaling for matrix products in float16; each trainer needs its own.
            None: no loss scaling.
          average: averages the parameters after every window, once it has begun; of the same model.
          replicas: the devices that train, each its own rows; everything with variables, the
            trainer too, must be made in their `scope()`. None: this device alone.
          jit_compile: whether XLA compiles the loop; with replicas, the parts of a window before
            and after the all-reduce.

        Raises:
          ValueError: the model was made outside the replicas' scope.
        """
        super().__init__(name="trainer")
        checks.check_choice("reduction", reduction, REDUCTIONS)
        check_model(model)
        self.model = model
        self.step = tf.Variable(0, dtype=tf.int64, trainable=False, name="step")
        initial = optimizer.init([tf.convert_to_tensor(p) for p in model.trainable_variables])
        self.opt_state = tf.nest.map_structure(
            lambda value: tf.Variable(value, trainable=False, name="opt_state"), initial
        )
        self.loss_scale = loss_scale
        self.average = average
        self._optimizer = optimizer
        self._reduction = reduction
        self._seed = make_seed(seed)
        self._seed_number = seed
        self.jit_compile = jit_compile
        self._replicas = replicas or Replicas()
        if self._replicas.strategy is None:
            self._program = make_program(self._train, jit_compile=jit_compile)
        else:
            self._replicas.check_copies(self.variables)
            self._program = make_replicated_program(
                self._replicas,
                lambda *given: self._backward("sum_over_window", *given),
                self._update,
                Metrics.none,
                reduction=reduction,
                parameters=model.trainable_variables,
                jit_compile=jit_compile,
            )

    def initial_loop_state(self, rows: int) -> LoopState:
        """Returns the loop state before the first window, on the devices that train."""
        return self.scatter(initial_loop_state(self.model, rows))

    def scatter(self, loop_state: LoopState) -> LoopState:
        """Puts the loop state of all rows on the devices that train them."""
        return self._replicas.scatter(loop_state)

    def local(self, loop_state: LoopState) -> LoopState:
        """Returns this process's rows of a loop state, as plain tensors."""
        return self._replicas.local(loop_state)

    def gather(self, loop_state: LoopState) -> LoopState:
        """Returns the loop state of all rows, in order; every process calls it at the same time."""
        return self._replicas.gather(loop_state)

    def __call__(self, loop_state: LoopState, chunk: Chunk) -> tuple[LoopState, Metrics]:
        """Trains on the windows of `chunk`; returns without waiting where the device allows.

        Raises:
          ValueError: the state in `loop_state` does not fit the model or the number of rows.
        """
        inputs = self._replicas.one(tf.nest.flatten(chunk.windows.inputs)[0])
        rows = int(inputs.shape[2])
        advice = (
            f"Make it with initial_loop_state({rows * self._replicas.count}), of the same model."
        )
        like = initial_loop_state(self.model, rows)
        checks.check_like("The carried state", self._replicas.one(loop_state), like, advice)
        loop_state, metrics = self._program(loop_state, chunk)
        return loop_state, self._replicas.one(metrics)

    @property
    def description(self) -> dict[str, Any]:
        """The trainer's hyperparameters and structure as plain values, for checkpoints."""
        return {
            "model": describe(self.model),
            "optimizer": describe(self._optimizer),
            "reduction": self._reduction,
            "seed": self._seed_number,
            "loss_scale": describe(self.loss_scale),
            "average": self.average is not None,
        }

    @property
    def replicas(self) -> Replicas:
        """The devices that train; a single one if no replicas were given."""
        return self._replicas

    @property
    def windows_seen(self) -> int:
        """The number of windows trained so far: `step` as a Python integer."""
        return int(self.step.numpy())

    @property
    def traces(self) -> int:
        """The number of times that the program was traced: 1, however many windows were trained."""
        return int(self._program.experimental_get_tracing_count())

    def _train(self, loop_state: LoopState, chunk: Chunk) -> tuple[LoopState, Metrics]:
        def backward(window: Window, loop_state: LoopState) -> WindowGradients:
            return self._backward(self._reduction, window, loop_state)

        traced = trace_window(backward, chunk.windows, loop_state)

        def train_window(
            window: Window, carried: tuple[LoopState, Metrics]
        ) -> tuple[LoopState, Metrics]:
            loop_state, metrics = carried
            continued = continues(window, loop_state.offset)
            return self._update(
                window, loop_state, metrics, traced.call(window, loop_state), continued
            )

        return fold(chunk, train_window, (loop_state, Metrics.none(traced.outputs.sums)))

    def _backward(
        self,
        reduction: str,
        window: Window,
        loop_state: LoopState,
        replica: tf.Tensor | None = None,
    ) -> WindowGradients:
        seed = fold_in(self._seed, tf.convert_to_tensor(self.step))
        if replica is not None:
            seed = fold_in(seed, replica)
        scale = None if self.loss_scale is None else tf.convert_to_tensor(self.loss_scale.scale)
        return window_gradients(self.model, reduction, window, loop_state.state, seed, scale)

    def _update(
        self,
        window: Window,
        loop_state: LoopState,
        metrics: Metrics,
        result: WindowGradients,
        continued: tf.Tensor,
    ) -> tuple[LoopState, Metrics]:
        step = tf.convert_to_tensor(self.step)
        broken = tf.where((metrics.broken < 0) & ~continued, metrics.windows, metrics.broken)
        finite, norm = is_finite(result)
        if self.loss_scale is not None:
            self.loss_scale.update(finite)
        apply_update(
            self._optimizer,
            self.model.trainable_variables,
            self.opt_state,
            result.gradients,
            step,
            accept=finite & (broken < 0),
            scale=window.update_scale,
        )
        if self.average is not None:
            self.average.update(finite & (broken < 0))
        self.step.assign_add(1)
        skipped = tf.cast(~finite, tf.int64)
        is_first = ~finite & (metrics.first_skipped < 0)
        fault = find_fault(result, finite)
        metrics = Metrics(
            windows=metrics.windows + 1,
            sums=tf.nest.map_structure(
                lambda old, new: old + _where(finite, new), metrics.sums, result.sums
            ),
            grad_norm_sum=metrics.grad_norm_sum + _where(finite, norm),
            grad_norm_max=tf.maximum(metrics.grad_norm_max, _where(finite, norm)),
            skipped=metrics.skipped + skipped,
            first_skipped=tf.where(is_first, metrics.windows, metrics.first_skipped),
            fault=tf.where(is_first, fault, metrics.fault),
            broken=broken,
        )
        loop_state = LoopState(
            result.state,
            offset_after(window, loop_state.offset),
            (loop_state.skipped_in_a_row + 1) * skipped,
        )
        return loop_state, metrics


def _where(finite: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.where(finite, value, tf.zeros_like(value)), tf.float32)
