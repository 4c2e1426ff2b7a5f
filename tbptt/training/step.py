"""One window, once: how it begins, its gradient, its update.

Everything here is traced into a larger program; nothing here decides about compilation.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import tensorflow as tf

from tbptt import losses
from tbptt.optimizers.clipping import global_norm
from tbptt.optimizers.transform import GradientTransform
from tbptt.state import detach, select
from tbptt.training.loss_scale import divide
from tbptt.training.unseen import counted_only, replace_unseen, true_state
from tbptt.types import Loss, Model, Nest, ScoringModel, Seed, State, Window


class Carry(NamedTuple):
    """What goes from window to window beside the parameters.

    Attributes:
      state: the rows' recurrent state, leaves `[B, ...]`.
      position: `[B]` int64: where in its stream each row stands, -1 before the first window.
      skipped_in_a_row: int64 scalar: windows just skipped because they were not finite.
    """

    state: State
    position: tf.Tensor
    skipped_in_a_row: tf.Tensor


class WindowGradients(NamedTuple):
    """Attributes:
    gradients: like `model.trainable_variables`, dense.
    state: after the window.
    loss_sum: scalar: over all that counts.
    weight_sum: scalar: how much counts.
    """

    gradients: list[tf.Tensor]
    state: State
    loss_sum: tf.Tensor
    weight_sum: tf.Tensor


def initial_carry(model: Model, rows: int) -> Carry:
    """Where `rows` rows stand before their first window."""
    return Carry(
        state=model.initial_state(rows),
        position=tf.fill([rows], tf.constant(-1, tf.int64)),
        skipped_in_a_row=tf.zeros([], tf.int64),
    )


def begin(model: Model, window: Window, state: State) -> State:
    """The state a window starts from: constants, and the initial state where a row starts.

    The one place where the gradient is cut. What a starting row gets is not cut, so that a
    learned initial state learns.
    """
    state = detach(state)
    if window.start is None:
        return state
    return select(window.start, model.initial_state(window.start.shape[0]), state)


def continues(window: Window, position: tf.Tensor) -> tf.Tensor:
    """Whether every row goes on at `position [B]`, or starts anew: a bool scalar."""
    if window.position is None:
        return tf.constant(True)
    fine = tf.equal(window.position, position)
    for starts in (window.start, None if window.reset is None else window.reset[0]):
        if starts is not None:
            fine |= starts
    return tf.reduce_all(fine)


def position_after(window: Window, position: tf.Tensor) -> tf.Tensor:
    """Where the rows stand after `window`, `[B]`."""
    if window.position is None:
        return position
    moved = steps(window) if window.advance is None else tf.cast(window.advance, tf.int64)
    return window.position + moved


def steps(window: Window) -> int:
    """T."""
    return int(tf.nest.flatten(window.inputs)[0].shape[0])


def rows(window: Window) -> int:
    """B."""
    return int(tf.nest.flatten(window.inputs)[0].shape[1])


def check_scores(model: Model, loss: Loss | None) -> None:
    """Raises TypeError if there is no loss and the model cannot score its windows itself."""
    if loss is None and not callable(getattr(model, "score", None)):
        raise TypeError(
            f"loss is None, but {type(model).__name__} has no method score(window, state, "
            "training=, seed=) -> (loss [T, B], state). Give it one, or pass a loss, as "
            "cross_entropy."
        )


def score(
    model: Model,
    loss: Loss | None,
    window: Window,
    state: State,
    *,
    training: bool,
    seed: Seed | None,
) -> tuple[tf.Tensor, State]:
    """The loss of every step of `window`, `[T, B]`, and the final state.

    With no `loss` the model scores the window itself.
    """
    if loss is None:
        return cast(ScoringModel, model).score(window, state, training=training, seed=seed)
    outputs, state = model(window, state, training=training, seed=seed)
    return loss(counted_only(outputs, window.weight), window.targets), state


def window_gradients(
    model: Model,
    loss: Loss | None,
    reduction: str,
    window: Window,
    state: State,
    seed: Seed | None,
    scale: tf.Tensor | None = None,
    *,
    training: bool = True,
) -> WindowGradients:
    """Forward and backward through one window, and no further. Assigns nothing.

    With a `scale`, a float32 scalar, what is differentiated is multiplied by it and the gradients
    are divided by it, see `loss_scale`. `training=False` leaves out dropout and the like.

    A value that is not finite and reaches nothing that counts changes no gradient; the state that
    is carried on is the true one, NaN included.
    """
    parameters = model.trainable_variables
    how: dict[str, Any] = dict(training=training, seed=seed)
    with tf.GradientTape() as tape:
        begun = begin(model, window, state)
        seen, seen_state, changed = replace_unseen(window, begun)
        step_losses, state = score(model, loss, seen, seen_state, **how)
        loss_sum, weight_sum = losses.weighted_sum(step_losses, window.weight)
        objective = losses.reduce(reduction, loss_sum, weight_sum, rows(window))
        if scale is not None:
            objective *= tf.cast(scale, objective.dtype)
    gradients = tape.gradient(
        objective, parameters, unconnected_gradients=tf.UnconnectedGradients.ZERO
    )
    state = true_state(changed, state, lambda: score(model, loss, window, begun, **how)[1])
    # An embedding's gradient comes as slices; every transform below wants tensors.
    gradients = [tf.convert_to_tensor(gradient) for gradient in gradients]
    if scale is not None:
        gradients = [divide(gradient, scale) for gradient in gradients]
    return WindowGradients(gradients, state, loss_sum, weight_sum)


def update(
    optimizer: GradientTransform,
    parameters: Sequence[tf.Variable],
    slots: Nest,
    gradients: list[tf.Tensor],
    step: tf.Tensor,
    accept: tf.Tensor,
    rate: tf.Tensor | None = None,
) -> None:
    """Assigns new parameters and slots where `accept`, a bool scalar; else nothing changes.

    With a `rate`, a float32 scalar, the updates are multiplied by it, after all transforms.
    """
    values = [tf.convert_to_tensor(parameter) for parameter in parameters]
    old = tf.nest.map_structure(tf.convert_to_tensor, slots)
    updates, new = optimizer.update(gradients, old, values, step)
    if rate is not None:
        updates = [change * tf.cast(rate, change.dtype) for change in updates]
    for parameter, value, change in zip(parameters, values, updates, strict=True):
        parameter.assign(tf.where(accept, value + change, value))
    for slot, before, after in zip(*map(tf.nest.flatten, (slots, old, new)), strict=True):
        slot.assign(tf.where(accept, after, before))


def is_finite(result: WindowGradients) -> tuple[tf.Tensor, tf.Tensor]:
    """Whether loss and gradients are finite, a bool scalar; and the gradients' norm."""
    norm = global_norm(result.gradients)
    return tf.math.is_finite(norm) & tf.math.is_finite(result.loss_sum), norm
