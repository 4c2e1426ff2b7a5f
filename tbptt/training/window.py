"""One window of training: cuts the gradient (stop_gradient), computes gradients, makes an update.

Back-propagation is truncated in `start_state`, and nowhere else. Everything in this file is traced
into a larger program; `programs` decides about compilation.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from tbptt import losses
from tbptt.optimizers.clipping import global_norm, sums_of_squares
from tbptt.optimizers.transform import GradientTransform
from tbptt.state import detach, select
from tbptt.training.loss_scale import divide
from tbptt.training.masking import replace_unseen, true_state
from tbptt.types import Model, Nest, Seed, State, Window, WindowLoss
from tbptt.variables import named_parameters


class ContinuityError(ValueError):
    """Raised when a window neither continues its rows' streams, nor starts the rows anew."""


LOSS, PENALTY = "loss", "penalty"  # names of sums beside those of a model's own metrics


class Sum(NamedTuple):
    """The weighted sum of a metric and the sum of its weights, two scalars."""

    total: tf.Tensor
    weight: tf.Tensor


Sums = dict[str, Sum]
"""Sums of loss and metrics by name; there is always one called `loss`."""


class LoopState(NamedTuple):
    """What windows of one call carry: recurrent state and offsets; a `RunState` adds the cursor.

    Attributes:
      state: the rows' recurrent state, leaves `[B, ...]`.
      offset: `[B]` int64, each row's offset in its stream, -1 before the first window.
      skipped_in_a_row: int64 scalar, the number of windows just skipped as not finite.
    """

    state: State
    offset: tf.Tensor
    skipped_in_a_row: tf.Tensor


class WindowGradients(NamedTuple):
    """The gradients of one window, with its loss sums and its final state.

    Attributes:
      gradients: dense tensors like `model.trainable_variables`.
      state: the recurrent state after the window.
      sums: sums of the loss, of the metrics, and of the penalty if there is one.
    """

    gradients: list[tf.Tensor]
    state: State
    sums: Sums


def initial_loop_state(model: Model, rows: int) -> LoopState:
    """Returns the loop state of `rows` rows before their first window."""
    return LoopState(
        state=model.initial_state(rows),
        offset=tf.fill([rows], tf.constant(-1, tf.int64)),
        skipped_in_a_row=tf.zeros([], tf.int64),
    )


def start_state(model: Model, window: Window, state: State) -> State:
    """Returns the state at a window's first step, cut by stop_gradient: truncated back-propagation.

    This is the only place where back-propagation is truncated: `detach` is `tf.stop_gradient`. A
    row that starts anew gets the initial state, which is not cut, so that a learned initial state
    gets a gradient.
    """
    state = detach(state)
    if window.start is None:
        return state
    return select(window.start, model.initial_state(window.start.shape[0]), state)


def continues(window: Window, offset: tf.Tensor) -> tf.Tensor:
    """Returns false if a row neither continues where the last window ended nor starts anew."""
    if window.offset is None:
        return tf.constant(True)
    fine = tf.equal(window.offset, offset)
    for starts in (
        window.start,
        None if window.controls.reset is None else window.controls.reset[0],
    ):
        if starts is not None:
            fine |= starts
    return tf.reduce_all(fine)


def offset_after(window: Window, offset: tf.Tensor) -> tf.Tensor:
    """Returns the offset of each row in its stream after `window`, `[B]`."""
    if window.offset is None:
        return offset
    moved = (
        step_count(window)
        if window.controls.advance is None
        else tf.cast(window.controls.advance, tf.int64)
    )
    return window.offset + moved


def step_count(window: Window) -> int:
    """Returns the number of steps in a window, T."""
    return int(tf.nest.flatten(window.inputs)[0].shape[0])


def row_count(window: Window) -> int:
    """Returns the number of rows in a window, B."""
    return int(tf.nest.flatten(window.inputs)[0].shape[1])


def check_model(model: Model) -> None:
    """Raises TypeError unless a model has a method `loss`."""
    if not callable(getattr(model, "loss", None)):
        raise TypeError(
            f"{type(model).__name__} has no method loss(window, state, *, training, seed) -> "
            "(WindowLoss, state). Give it one, or use a SequenceModel with a loss."
        )


def window_sums(result: WindowLoss, weight: tf.Tensor | None) -> Sums:
    """Returns the sum of loss, penalty and metrics over a window, and the weights of the sums.

    Args:
      result: loss and metrics of a window.
      weight: `[T, B]`, the weight of each step. None: 1.

    Raises:
      ValueError: a metric has the name `loss` or `penalty`.
    """
    for name in {LOSS, PENALTY} & set(result.metrics):
        raise ValueError(f"{name!r} is a metric of its own. Give the model's metric another name.")
    sums = {LOSS: Sum(*losses.weighted_sum(result.loss, weight))}
    for name in sorted(result.metrics):
        value = result.metrics[name]
        if isinstance(value, tuple):
            sums[name] = Sum(*value)
        elif len(value.shape):
            sums[name] = Sum(*losses.weighted_sum(value, weight))
        else:
            sums[name] = Sum(value, tf.ones_like(value))
    if result.penalty is not None:
        sums[PENALTY] = Sum(*losses.weighted_sum(result.penalty, weight))
    return sums


def window_gradients(
    model: Model,
    reduction: str,
    window: Window,
    state: State,
    seed: Seed | None,
    scale: tf.Tensor | None = None,
    *,
    training: bool = True,
) -> WindowGradients:
    """Computes the gradients of one window by truncated back-propagation; assigns no variable.

    With a `scale`, a float32 scalar, the loss is multiplied by it and the gradients are divided by
    it, see `loss_scale`. `training=False` leaves out dropout and the like.

    A value that is not finite and influences no counted step changes no gradient, see `masking`;
    the returned state is computed with the true values, NaN included.
    """
    parameters = model.trainable_variables
    how: dict[str, Any] = dict(training=training, seed=seed)
    with tf.GradientTape() as tape:
        begun = start_state(model, window, state)
        seen, seen_state, changed = replace_unseen(window, begun)
        window_loss, state = model.loss(seen, seen_state, **how)
        sums = window_sums(window_loss, window.weight)
        objective = losses.reduce(reduction, minimised(sums), sums[LOSS].weight, row_count(window))
        if scale is not None:
            objective *= tf.cast(scale, objective.dtype)
    gradients = tape.gradient(
        objective, parameters, unconnected_gradients=tf.UnconnectedGradients.ZERO
    )
    state = true_state(changed, state, lambda: model.loss(window, begun, **how)[1])
    # An embedding's gradient is IndexedSlices; all transforms need tensors.
    gradients = [tf.convert_to_tensor(gradient) for gradient in gradients]
    if scale is not None:
        gradients = [divide(gradient, scale) for gradient in gradients]
    return WindowGradients(gradients, state, sums)


def minimised(sums: Sums) -> tf.Tensor:
    """Returns the sum that training minimises: of the loss, and of the penalty if there is one."""
    total = sums[LOSS].total
    return total + sums[PENALTY].total if PENALTY in sums else total


def apply_update(
    optimizer: GradientTransform,
    parameters: Sequence[tf.Variable],
    opt_state: Nest,
    gradients: list[tf.Tensor],
    step: tf.Tensor,
    accept: tf.Tensor,
    scale: tf.Tensor | None = None,
) -> None:
    """Assigns new parameters and optimizer state where `accept`, a bool scalar, is true.

    With a `scale`, a float32 scalar, the updates are multiplied by it after all transforms; or the
    gradients before them, if the optimizer asks for that, see `GradientTransform.scale_first`.
    """

    def scaled(nest: Nest, applies: bool) -> Nest:
        if scale is None or not applies:
            return nest
        return tf.nest.map_structure(lambda x: x * tf.cast(scale, x.dtype), nest)

    values = [tf.convert_to_tensor(parameter) for parameter in parameters]
    old = tf.nest.map_structure(tf.convert_to_tensor, opt_state)
    gradients = scaled(gradients, optimizer.scale_first)
    updates, new = optimizer.update(gradients, old, values, step)
    updates = scaled(updates, not optimizer.scale_first)
    for parameter, value, change in zip(parameters, values, updates, strict=True):
        parameter.assign(tf.where(accept, value + change, value))
    for variable, before, after in zip(*map(tf.nest.flatten, (opt_state, old, new)), strict=True):
        variable.assign(tf.where(accept, after, before))


def is_finite(result: WindowGradients) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns whether loss and gradients are finite, a bool scalar, and the gradients' norm."""
    norm = global_norm(result.gradients)
    return tf.math.is_finite(norm) & tf.math.is_finite(minimised(result.sums)), norm


FAULTLESS, FAULT_OF_LOSS = -1, 0  # `find_fault` returns one of these, or 1 + a parameter's index


def find_fault(result: WindowGradients, finite: tf.Tensor) -> tf.Tensor:
    """Finds which value of a window is not finite, the loss or a gradient: an int64 scalar.

    It reads the sums of squares that the norm is computed from, so it costs nothing. An infinite
    sum may come from finite values above 1e19, so a sum that is NaN is preferred.

    Args:
      result: the gradients and sums of the window.
      finite: whether they are finite, as `is_finite` returns it.

    Returns:
      FAULTLESS if `finite`; FAULT_OF_LOSS; or k + 1 for the first gradient, that of parameter k.
    """
    sums = tf.stack(sums_of_squares(result.gradients))
    loss = tf.math.is_finite(minimised(result.sums))
    of_gradients = 2 * tf.cast(tf.math.is_nan(sums), tf.int32)
    of_gradients += tf.cast(tf.math.is_inf(sums), tf.int32)
    first = tf.argmax(tf.concat([[3 * tf.cast(~loss, tf.int32)], of_gradients], axis=0))
    return tf.where(finite, tf.constant(FAULTLESS, tf.int64), first)


def describe_fault(model: Model, number: int) -> str:
    """Describes what `find_fault` found in words, as the subject of a sentence."""
    if number == FAULT_OF_LOSS:
        return "its loss"
    parameter = model.trainable_variables[number - 1]
    names = {id(variable): name for name, variable in named_parameters(model).items()}
    return f"its gradient of {names.get(id(parameter), parameter.name)}"
