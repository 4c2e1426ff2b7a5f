"""Keeps NaN and infinity out of gradients where they lie in steps that do not count.

A step with weight 0 has the derivative 0, but 0 * NaN is NaN, and one NaN in the product of inputs
and gradients spoils a whole weight matrix. So such values are replaced by 0 before the forward
pass; nothing else keeps the gradient clean on every backend and in a user's own cell.
"""

from collections.abc import Callable

import tensorflow as tf

from tbptt.state import select
from tbptt.types import Nest, State, Window


def reaches_counted(weight: tf.Tensor, reset: tf.Tensor | None) -> tf.Tensor:
    """Finds the steps that count, and those before a step that counts with no reset in between.

    Args:
      weight: `[T, B]`.
      reset: `[T, B]` bool, or None.

    Returns:
      `[T, B]` bool.

    Example: one row that counts at steps 1 and 4, and starts anew at step 3.
      >>> weight = tf.constant([[0.0], [1.0], [0.0], [0.0], [1.0], [0.0]])
      >>> reset = tf.constant([[False], [False], [False], [True], [False], [False]])
      >>> reaches_counted(weight, reset)[:, 0].numpy().astype(int).tolist()
      [1, 1, 0, 1, 1, 0]
    """
    steps = weight.shape[0]
    reaches = weight > 0
    # The reach doubles in every turn: open_[t, b] says that row b is not reset in the `ahead`
    # steps after t.
    going_on = tf.ones_like(reaches) if reset is None else ~reset
    ahead = 1
    open_ = _later(going_on, ahead)
    while ahead < steps:
        reaches |= open_ & _later(reaches, ahead)
        open_ &= _later(open_, ahead)
        ahead *= 2
    return reaches


def replace_unseen(window: Window, state: State) -> tuple[Window, State, tf.Tensor | None]:
    """Replaces non-finite values of inputs, targets and state by 0 where they affect no loss.

    Finite values stay the same to the bit. Windows without weights, and values that are not of a
    floating type, as ids, are returned as they are, without any computation.

    Args:
      window: one window.
      state: the state at its first step, leaves `[B, ...]`.

    Returns:
      The window, the state, and the rows of which inputs or state were changed, `[B]` bool, or
      None if nothing can have been changed. The state that follows from changed rows must not be
      carried on, see `true_state`: a NaN in the state has to show in later windows.
    """
    if window.weight is None:
        return window, state, None
    window = window._replace(targets=_finite(window.targets, window.weight > 0)[0])
    if not any(part.dtype.is_floating for part in tf.nest.flatten(window.inputs)):
        return window, state, None
    seen = reaches_counted(window.weight, window.controls.reset)
    inputs, changed = _finite(window.inputs, seen)
    entered = seen[0] if window.controls.reset is None else seen[0] & ~window.controls.reset[0]
    state, forgotten = _finite(state, entered)
    return (
        window._replace(inputs=inputs),
        state,
        tf.reduce_any(tf.stack(changed + forgotten), axis=0),
    )


def true_state(changed: tf.Tensor | None, state: State, again: Callable[[], State]) -> State:
    """Returns `state`, with the rows `changed [B]`, if there are any, taken from `again()`."""
    if changed is None:
        return state
    return tf.cond(tf.reduce_any(changed), lambda: select(changed, again(), state), lambda: state)


def _finite(nest: Nest, seen: tf.Tensor) -> tuple[Nest, list[tf.Tensor]]:
    """Replaces values that are neither finite nor `seen` by 0; returns each leaf's changed rows.

    `seen` is `[T, B]` or `[B]`, and the nest's leaves begin with the same axes. Only leaves of a
    floating type are looked at; their rows are returned as `[B]` bools.
    """
    changed = []

    def leaf(x: tf.Tensor) -> tf.Tensor:
        if not x.dtype.is_floating:
            return x
        stays = _over(seen, x) | tf.math.is_finite(x)
        row = len(seen.shape) - 1
        changed.append(~tf.reduce_all(stays, axis=[a for a in range(x.shape.rank) if a != row]))
        return tf.where(stays, x, tf.zeros_like(x))

    return tf.nest.map_structure(leaf, nest), changed


def _over(mask: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """Reshapes `mask`, which covers the leading axes of `x`, so that it broadcasts over `x`."""
    return tf.reshape(mask, [*mask.shape, *[1] * (x.shape.rank - mask.shape.rank)])


def _later(mask: tf.Tensor, ahead: int) -> tf.Tensor:
    """Shifts `mask [T, B]` by `ahead` steps to earlier times, filled with False at the end."""
    return tf.pad(mask[ahead:], [[0, min(ahead, mask.shape[0])], [0, 0]])
