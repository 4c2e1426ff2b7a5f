"""The nouns every other module speaks in.

Axes, time-major everywhere: `T` step in the window, `B` row, `D` input features,
`H` hidden units, `V` vocabulary, `K` windows in one call, `L` layer.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

import tensorflow as tf

Nest = Any  # a tensor, or any nesting of tuples, named tuples, lists and dicts of them
State = Nest  # every leaf is [B, ...]: row b's memory is at index b

Loss = Callable[[Nest, Nest], tf.Tensor]
"""`(outputs, targets) -> loss [T, B]`: one number a step."""


class PenalisedLoss(NamedTuple):
    """What a model that scores itself may return for the loss of every step.

    Attributes:
      loss: `[T, B]`: what the model is judged by.
      penalty: `[T, B]`: what training minimises with it, and no figure shows.
    """

    loss: tf.Tensor
    penalty: tf.Tensor


Seed: TypeAlias = tf.Tensor
"""An int32 `[2]` key of a stateless random number generator."""


@dataclasses.dataclass(frozen=True)
class Cursor:
    """The next window of a stream: plain integers, so that a saved cursor is a position."""

    epoch: int = 0
    index: int = 0  # window within the epoch, 0 <= index < windows_per_epoch


class Window(NamedTuple):
    """`T` steps of all `B` rows; or `K` windows, every field with a leading axis `[K, ...]`.

    Attributes:
      inputs: `[T, B]` ids or `[T, B, D]` features (or a nest of such).
      targets: `[T, B]` or `[T, B, D]` (or a nest of such).
      reset: `[T, B]` bool: row b starts anew at step t, that is, the initial state is
        selected before that step. None: this stream never resets inside a window.
      weight: `[T, B]` float32: what a step counts for; 0 where there is nothing to
        score (padding). None: every step counts 1.
      start: `[B]` bool: row b starts anew at the first step. The same as `reset[0]`, but
        it costs one select a window where `reset` costs one a step. None: never.
      position: `[B]` int64: where in its own stream each row stands at the first step.
        None: unknown, and then continuity cannot be checked.
      link: `[T, B]` float32: what the gradient that goes back from step t to step t - 1 through
        the state is multiplied with; 0 cuts it. None: 1.
      advance: int32 scalar: the rows move on by so many steps, and what they carry is the state
        after them, 1 <= advance <= T; the rest of the window is read again. None: T.
      rate: float32 scalar: what the update is multiplied with; the gradient, where an update is
        made of several windows. None: 1.
    """

    inputs: Nest
    targets: Nest
    reset: tf.Tensor | None = None
    weight: tf.Tensor | None = None
    start: tf.Tensor | None = None
    position: tf.Tensor | None = None
    link: tf.Tensor | None = None
    advance: tf.Tensor | None = None
    rate: tf.Tensor | None = None

    def at(self, index: Any) -> "Window":
        """One window out of `[K, ...]` stacked ones; `index` may be a tensor.

        By `tf.gather`: XLA wants to know the index of a slice when it compiles, and would
        compile again for every other one.
        """
        return tf.nest.map_structure(
            lambda field: None if field is None else tf.gather(field, index), self
        )

    def of_rows(self, rows: slice) -> "Window":
        """The same of some rows, out of `[K, ...]` stacked arrays."""
        return Window(
            *(
                field
                if axis is None or field is None
                else tf.nest.map_structure(
                    lambda f, axis=axis: f[(slice(None),) * axis + (rows,)], field
                )
                for field, axis in zip(self, ROW_AXES, strict=True)
            )
        )


# Where the rows are in `K` stacked windows; None: the field has no rows.
ROW_AXES = Window(
    inputs=2, targets=2, reset=2, weight=2, start=1, position=1, link=2, advance=None, rate=None
)


class Stream(Protocol):
    """Windows by random access. A stream is a pure function of the cursor."""

    rows: int
    window_length: int
    windows_per_epoch: int
    epochs_alike: bool  # True: window i is the same in every epoch

    def windows(self, cursor: Cursor, count: int) -> tuple[Window, Cursor]:
        """`count` consecutive windows, stacked `[count, ...]` NumPy arrays, and the next cursor.

        May run across the end of an epoch.
        """


class Core(Protocol):
    """A recurrent layer. A `tf.Module`: parameters only, built at construction."""

    output_size: int

    def initial_state(self, batch_size: int) -> State:
        """The state of `batch_size` rows that have read nothing."""

    def __call__(
        self,
        inputs: Nest,
        state: State,
        *,
        reset: tf.Tensor | None = None,
        link: tf.Tensor | None = None,
        advance: tf.Tensor | None = None,
        training: bool = False,
        seed: Seed | None = None,
    ) -> tuple[Nest, State]:
        """Runs a whole window: `inputs [T, B, D] -> outputs [T, B, H]`, and the final state.

        With `advance` it is the state after so many steps, and no gradient passes through it.
        `reset`, `link` and `advance` are as in `Window`; a core hands them to `unroll`.
        """


class Readout(Protocol):
    """From hidden states to the next token, a `tf.Module`: see `readouts`."""

    hidden_size: int
    vocabulary_size: int

    @property
    def trainable_variables(self) -> Sequence[tf.Variable]:
        """The parameters, always in the same order."""

    def logits(self, hidden: tf.Tensor) -> tf.Tensor:
        """`[..., H] -> [..., V]`: their softmax is the distribution."""

    def score(
        self, hidden: tf.Tensor, targets: tf.Tensor, *, training: bool, seed: Seed | None
    ) -> tf.Tensor:
        """Negative log probability of `targets [T, B]` after `hidden [T, B, H]`: `[T, B]`."""


class Model(Protocol):
    """What the trainer sees, a `tf.Module`: no layer, no backend."""

    @property
    def trainable_variables(self) -> Sequence[tf.Variable]:
        """The parameters, always in the same order."""

    def initial_state(self, batch_size: int) -> State:
        """The state of `batch_size` rows that have read nothing."""

    def __call__(
        self, window: Window, state: State, *, training: bool, seed: Seed | None
    ) -> tuple[Nest, State]:
        """Outputs for all steps of `window`, and the state after `window.advance` of them.

        Hands `reset`, `link` and `advance` of the window to its core.
        """


class ScoringModel(Model, Protocol):
    """A model that also scores its windows itself, which is what `loss=None` asks for.

    Optional: it may spare outputs that would be larger than all else, as `[T, B, V]` logits. One
    that adds to the loss in training says so by an attribute `only_in_score`, the names of what it
    adds, and is then refused with a loss that would leave them out.
    """

    def score(
        self, window: Window, state: State, *, training: bool, seed: Seed | None
    ) -> tuple[tf.Tensor | PenalisedLoss, State]:
        """The loss of every step of `window`, `[T, B]`, and the final state."""


def advance(cursor: Cursor, count: int, windows_per_epoch: int) -> Cursor:
    """The cursor `count` windows further on.

    >>> advance(Cursor(epoch=0, index=8), 5, windows_per_epoch=10)
    Cursor(epoch=1, index=3)
    """
    epochs, index = divmod(cursor.index + count, windows_per_epoch)
    return Cursor(cursor.epoch + epochs, index)
