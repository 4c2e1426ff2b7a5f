"""What reaches nothing that a window counts: where it is not finite, the gradient must not see it.

What does not count has the derivative 0, but 0 * NaN is NaN, and one NaN in the product of inputs
and gradients spoils a whole weight matrix. So such values are replaced before they are computed
with; nothing else keeps the gradient clean on every backend and in a user's own cell.
"""

from collections.abc import Callable

import tensorflow as tf

from tbptt.state import select
from tbptt.types import Nest, State, Window


def reaches_counted(weight: tf.Tensor, reset: tf.Tensor | None) -> tf.Tensor:
    """Tells where a step counts, or a later one of its row does with no reset between them.

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
    # Twice as far in every turn: open[t] says that no row starts anew in the next `ahead` steps.
    going_on = tf.ones_like(reaches) if reset is None else ~reset
    ahead = 1
    open_ = _later(going_on, ahead)
    while ahead < steps:
        reaches |= open_ & _later(reaches, ahead)
        open_ &= _later(open_, ahead)
        ahead *= 2
    return reaches


def replace_unseen(window: Window, state: State) -> tuple[Window, State, tf.Tensor | None]:
    """Puts 0 for inputs, targets and state that are not finite and reach nothing that counts.

    Where everything is finite, nothing changes to the bit. Nothing is computed for windows without
    weights, nor for what is not of a floating type, as ids.

    Args:
      window: one window.
      state: what it begins with, leaves `[B, ...]`.

    Returns:
      The window, the state, and the rows of which inputs or state were changed, `[B]` bool. The
      state that these lead to is not what is to be carried on: a NaN that is remembered has to
      show in the windows that come. None: nothing can have been changed.
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
    """Returns `state`, and for the rows `changed [B]`, if there are any, that of `again`."""
    if changed is None:
        return state
    return tf.cond(tf.reduce_any(changed), lambda: select(changed, again(), state), lambda: state)


def _finite(nest: Nest, seen: tf.Tensor) -> tuple[Nest, list[tf.Tensor]]:
    """0 for what is neither finite nor `seen`; and for each floating leaf the rows with any, `[B]`.

    `seen` is `[T, B]` or `[B]`, and the nest's leaves begin with the same axes.
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
    """`mask`, of the leading axes of `x`, with as many axes as `x`."""
    return tf.reshape(mask, [*mask.shape, *[1] * (x.shape.rank - mask.shape.rank)])


def _later(mask: tf.Tensor, ahead: int) -> tf.Tensor:
    """What `mask [T, B]` is so many steps later; False after its end."""
    return tf.pad(mask[ahead:], [[0, min(ahead, mask.shape[0])], [0, 0]])
