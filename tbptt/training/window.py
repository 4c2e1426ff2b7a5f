"""One window, once: how it begins, its gradient, its update.

Everything here is traced into a larger program; nothing here decides about compilation.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import tensorflow as tf

from tbptt import losses
from tbptt.optimizers.clipping import global_norm, sums_of_squares
from tbptt.optimizers.transform import GradientTransform
from tbptt.state import detach, select
from tbptt.training.loss_scale import divide
from tbptt.training.masking import counted_only, replace_unseen, true_state
from tbptt.types import Loss, Model, Nest, PenalisedLoss, ScoringModel, Seed, State, Window
from tbptt.variables import named_parameters


class ContinuityError(ValueError):
    """A window neither begins where its rows stand, nor starts them anew."""


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
    """The gradients of one window, and its loss and final state.

    Attributes:
      gradients: like `model.trainable_variables`, dense.
      state: after the window.
      loss_sum: scalar: over all that counts.
      weight_sum: scalar: how much counts.
      penalty_sum: scalar: as `loss_sum`, of what training adds to the loss.
    """

    gradients: list[tf.Tensor]
    state: State
    loss_sum: tf.Tensor
    weight_sum: tf.Tensor
    penalty_sum: tf.Tensor


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
    """Returns the number of steps in a window, T."""
    return int(tf.nest.flatten(window.inputs)[0].shape[0])


def rows(window: Window) -> int:
    """Returns the number of rows in a window, B."""
    return int(tf.nest.flatten(window.inputs)[0].shape[1])


def check_scores(model: Model, loss: Loss | None) -> None:
    """Raises TypeError if there is no loss and the model cannot score its windows itself."""
    if loss is None and not callable(getattr(model, "score", None)):
        raise TypeError(
            f"loss is None, but {type(model).__name__} has no method score(window, state, "
            "training=, seed=) -> (loss [T, B], state). Give it one, or pass a loss, as "
            "cross_entropy."
        )


def check_nothing_ignored(model: Model, loss: Loss | None) -> None:
    """Raises ValueError if a loss was given to train a model that has more in its own score."""
    ignored = getattr(model, "only_in_score", ())
    if loss is not None and ignored:
        raise ValueError(
            f"A loss was given ({getattr(loss, '__name__', loss)}), but {type(model).__name__} has "
            f"{' and '.join(ignored)}, which only its own score trains with. Pass loss=None, and "
            "the model scores its windows itself, or leave that out of the model."
        )


def score(
    model: Model,
    loss: Loss | None,
    window: Window,
    state: State,
    *,
    training: bool,
    seed: Seed | None,
) -> tuple[tf.Tensor, tf.Tensor | None, State]:
    """Returns loss and penalty of every step of `window`, `[T, B]` each, and the final state.

    With no `loss` the model scores the window itself, and only then may there be a penalty.
    """
    if loss is None:
        scored, state = cast(ScoringModel, model).score(window, state, training=training, seed=seed)
        if isinstance(scored, PenalisedLoss):
            return scored.loss, scored.penalty, state
        return scored, None, state
    outputs, state = model(window, state, training=training, seed=seed)
    return loss(counted_only(outputs, window.weight), window.targets), None, state


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
        step_losses, penalties, state = score(model, loss, seen, seen_state, **how)
        loss_sum, weight_sum = losses.weighted_sum(step_losses, window.weight)
        minimised, penalty_sum = loss_sum, tf.zeros_like(loss_sum)
        if penalties is not None:
            penalty_sum, _ = losses.weighted_sum(penalties, window.weight)
            minimised = loss_sum + penalty_sum
        objective = losses.reduce(reduction, minimised, weight_sum, rows(window))
        if scale is not None:
            objective *= tf.cast(scale, objective.dtype)
    gradients = tape.gradient(
        objective, parameters, unconnected_gradients=tf.UnconnectedGradients.ZERO
    )
    state = true_state(changed, state, lambda: score(model, loss, window, begun, **how)[-1])
    # An embedding's gradient comes as slices; every transform below wants tensors.
    gradients = [tf.convert_to_tensor(gradient) for gradient in gradients]
    if scale is not None:
        gradients = [divide(gradient, scale) for gradient in gradients]
    return WindowGradients(gradients, state, loss_sum, weight_sum, penalty_sum)


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

    With a `rate`, a float32 scalar, the updates are multiplied by it, after all transforms; or the
    gradients before them, where the optimizer wants that, see `GradientTransform.rate_first`.
    """

    def rated(nest: Nest, applies: bool) -> Nest:
        if rate is None or not applies:
            return nest
        return tf.nest.map_structure(lambda x: x * tf.cast(rate, x.dtype), nest)

    values = [tf.convert_to_tensor(parameter) for parameter in parameters]
    old = tf.nest.map_structure(tf.convert_to_tensor, slots)
    gradients = rated(gradients, optimizer.rate_first)
    updates, new = optimizer.update(gradients, old, values, step)
    updates = rated(updates, not optimizer.rate_first)
    for parameter, value, change in zip(parameters, values, updates, strict=True):
        parameter.assign(tf.where(accept, value + change, value))
    for slot, before, after in zip(*map(tf.nest.flatten, (slots, old, new)), strict=True):
        slot.assign(tf.where(accept, after, before))


def is_finite(result: WindowGradients) -> tuple[tf.Tensor, tf.Tensor]:
    """Whether loss and gradients are finite, a bool scalar; and the gradients' norm."""
    norm = global_norm(result.gradients)
    return tf.math.is_finite(norm) & tf.math.is_finite(result.loss_sum + result.penalty_sum), norm


FAULTLESS, FAULT_OF_LOSS = -1, 0  # what `fault` returns beside 1 + the place of a parameter


def fault(result: WindowGradients, finite: tf.Tensor) -> tf.Tensor:
    """Returns what of a window is not finite, an int64 scalar.

    It is told by the sums that the norm is made of, so it costs nothing. One that is infinite may
    be of finite values above 1e19, and gives way to one that is NaN.

    Args:
      result: of the window.
      finite: what `is_finite` says of it.

    Returns:
      FAULTLESS where `finite`; FAULT_OF_LOSS; or k + 1 for the gradient of parameter k, the first.
    """
    sums = tf.stack(sums_of_squares(result.gradients))
    loss = tf.math.is_finite(result.loss_sum + result.penalty_sum)
    of_gradients = 2 * tf.cast(tf.math.is_nan(sums), tf.int32)
    of_gradients += tf.cast(tf.math.is_inf(sums), tf.int32)
    first = tf.argmax(tf.concat([[3 * tf.cast(~loss, tf.int32)], of_gradients], axis=0))
    return tf.where(finite, tf.constant(FAULTLESS, tf.int64), first)


def describe_fault(model: Model, number: int) -> str:
    """Returns what `fault` found, in words: the subject of a sentence."""
    if number == FAULT_OF_LOSS:
        return "its loss"
    parameter = model.trainable_variables[number - 1]
    names = {id(variable): name for name, variable in named_parameters(model).items()}
    return f"its gradient of {names.get(id(parameter), parameter.name)}"
