"""The shared types: `Window`, `Controls`, `Cursor`, and the protocols `Stream`, `Core`, `Model`.

Axes, time-major everywhere: `T` step in the window, `B` row, `D` input features,
`H` hidden units, `V` vocabulary, `K` windows in one call, `L` layer.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

import tensorflow as tf

Nest = Any  # a tensor, or any nesting of tuples, named tuples, lists and dicts of them
State = Nest  # every leaf is [B, ...]: row b's memory is at index b

Loss = Callable[[Nest, Nest], tf.Tensor]
"""A loss or a metric, `(outputs, targets) -> [T, B]`: one number for each step of each row."""


class WindowLoss(NamedTuple):
    """Loss and metrics of a window's steps; `Model.loss` returns it, own metrics included.

    Training minimises the weighted mean of `loss + penalty`; the loss is reported alone, so that
    training and validation can be compared. Every metric is reported by its name, in training and
    evaluation, summed over windows and replicas.

    Attributes:
      loss: `[T, B]`, the loss that is reported.
      metrics: by name, `[T, B]` for a mean over the steps, weighted as the loss; a scalar for
        a mean over windows; or a pair `(sum, weight)` of scalars for a mean of another weight.
      penalty: `[T, B]`, a penalty that training adds to the loss. It is reported as the metric
        `penalty`. None: no penalty.
    """

    loss: tf.Tensor
    metrics: Mapping[str, Any] = {}
    penalty: tf.Tensor | None = None


Seed: TypeAlias = tf.Tensor
"""An int32 `[2]` key of a stateless random number generator."""


@dataclasses.dataclass(frozen=True)
class Cursor:
    """Names the next window of a stream by plain integers, so that it can be saved and resumed."""

    epoch: int = 0
    index: int = 0  # window within the epoch, 0 <= index < windows_per_epoch


class Controls(NamedTuple):
    """Controls of a window's steps: `reset [T, B]`, `gradient_scale [T, B]` and `advance`.

    A model hands them on to its core, and a core to `unroll`.

    Attributes:
      reset: `[T, B]` bool: row b starts anew at step t, that is, the initial state is
        selected before that step. None: no row starts anew inside the window.
      gradient_scale: `[T, B]` float32: factor on the gradient that flows back through the state
        from step t to step t - 1; 0 cuts it. None: 1.
      advance: int32 scalar, 1 <= advance <= T: the rows move on by this many steps, and the state
        after them is carried on; the other steps are read again by the next window. None: T.
    """

    reset: tf.Tensor | None = None
    gradient_scale: tf.Tensor | None = None
    advance: tf.Tensor | None = None


class Window(NamedTuple):
    """One window of data: inputs, targets `[T, B, ...]`, weights, offsets, `controls` (resets).

    Streams return `K` stacked windows, every field `[K, ...]`.

    Attributes:
      inputs: `[T, B]` ids or `[T, B, D]` features (or a nest of such).
      targets: `[T, B]` or `[T, B, D]` (or a nest of such).
      weight: `[T, B]` float32: the weight of a step in loss and metrics; 0 for steps that are not
        scored (padding). None: every step has weight 1.
      start: `[B]` bool: row b starts anew at the first step. The same as `controls.reset[0]`, but
        it costs one select a window where `reset` costs one a step. None: never.
      offset: `[B]` int64: the offset of each row in its own stream at the first step.
        None: unknown, and then continuity cannot be checked.
      update_scale: float32 scalar: factor on the update; on the gradient, if an update is
        made of several windows. None: 1.
      controls: resets inside the window, factors on the gradient, number of steps to advance.
    """

    inputs: Nest
    targets: Nest
    weight: tf.Tensor | None = None
    start: tf.Tensor | None = None
    offset: tf.Tensor | None = None
    update_scale: tf.Tensor | None = None
    controls: Controls = Controls()

    def at(self, index: Any) -> "Window":
        """Returns one window of `[K, ...]` stacked windows; `index` may be a tensor.

        It uses `tf.gather`, because XLA needs the index of a slice when it compiles, and would
        compile again for every other index.
        """
        return tf.nest.map_structure(
            lambda field: None if field is None else tf.gather(field, index), self
        )

    def map_fields(self, change: Callable[[Any, int | None], Any]) -> "Window":
        """Applies `change(leaf, row_axis)` to every array of `K` stacked windows.

        `row_axis` is the axis of the rows, or None if an array has no rows. Fields that are
        None stay None.
        """

        def changed(field: Nest, axis: int | None) -> Nest:
            if field is None:
                return None
            return tf.nest.map_structure(lambda leaf: change(leaf, axis), field)

        fields = map(changed, self[:-1], ROW_AXES[:-1])
        controls = Controls(*map(changed, self.controls, ROW_AXES.controls))
        return Window(*fields)._replace(controls=controls)

    def of_rows(self, rows: slice) -> "Window":
        """Returns `K` stacked windows of the given rows only."""
        return self.map_fields(
            lambda leaf, axis: leaf if axis is None else leaf[(slice(None),) * axis + (rows,)]
        )


# The axis of the rows in each field of `K` stacked windows; None: the field has no rows.
ROW_AXES: Any = Window(
    inputs=2,
    targets=2,
    weight=2,
    start=1,
    offset=1,
    update_scale=None,
    controls=Controls(reset=2, gradient_scale=2, advance=None),
)


class Stream(Protocol):
    """Gives windows by cursor; the windows are a pure function of the cursor."""

    rows: int
    window_length: int
    windows_per_epoch: int
    epochs_alike: bool  # True: window i is the same in every epoch

    def windows(self, cursor: Cursor, count: int) -> tuple[Window, Cursor]:
        """Returns `count` stacked windows `[count, ...]`, NumPy arrays, and the cursor after them.

        The windows may run across the end of an epoch.
        """


class Core(Protocol):
    """Recurrent layers: `core(inputs, state, controls) -> (outputs, state)`; a `tf.Module`.

    It holds parameters, and never the state.
    """

    output_size: int

    def initial_state(self, rows: int) -> State:
        """Returns the state of `rows` rows that have read nothing."""

    def __call__(
        self,
        inputs: Nest,
        state: State,
        controls: Controls = Controls(),
        *,
        training: bool = False,
        seed: Seed | None = None,
    ) -> tuple[Nest, State]:
        """Runs a window: `inputs [T, B, D]` to `outputs [T, B, H]`, and the state after it.

        With `controls.advance` it is the state after that many steps, and no gradient flows
        through it. A core hands the controls to `unroll`.
        """


class Readout(Protocol):
    """Maps hidden states to the distribution of the next token; a `tf.Module`."""

    hidden_size: int
    vocabulary_size: int

    @property
    def trainable_variables(self) -> Sequence[tf.Variable]:
        """The trainable parameters, always in the same order."""

    def logits(self, hidden: tf.Tensor) -> tf.Tensor:
        """Computes logits `[..., V]` from `hidden [..., H]`; their softmax is the distribution."""

    def loss(
        self, hidden: tf.Tensor, targets: tf.Tensor, *, training: bool, seed: Seed | None
    ) -> tf.Tensor:
        """Computes the negative log probability of `targets [T, B]` after `hidden [T, B, H]`."""


class Model(Protocol):
    """The interface of a model for trainer, evaluator and sampler; a `tf.Module`."""

    @property
    def trainable_variables(self) -> Sequence[tf.Variable]:
        """The trainable parameters, always in the same order."""

    def initial_state(self, rows: int) -> State:
        """Returns the state of `rows` rows that have read nothing."""

    def __call__(
        self,
        inputs: Nest,
        state: State,
        controls: Controls = Controls(),
        *,
        training: bool = False,
        seed: Seed | None = None,
    ) -> tuple[Nest, State]:
        """Computes the outputs of all steps, and the state after `controls.advance` of them."""

    def loss(
        self, window: Window, state: State, *, training: bool, seed: Seed | None
    ) -> tuple[WindowLoss, State]:
        """Computes loss and metrics of every step of `window`, and the state after it.

        With `training`, dropout and everything else that only training has are on.
        """


def advance(cursor: Cursor, count: int, windows_per_epoch: int) -> Cursor:
    """Returns the cursor `count` windows after `cursor`.

    >>> advance(Cursor(epoch=0, index=8), 5, windows_per_epoch=10)
    Cursor(epoch=1, index=3)
    """
    epochs, index = divmod(cursor.index + count, windows_per_epoch)
    return Cursor(cursor.epoch + epochs, index)
