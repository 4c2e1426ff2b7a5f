"""Recurrent state: pure functions on nests of `[B, ...]`; select (reset), detach, scale.

The state itself is held by no module: it is an argument and a result of every call. `detach` is
`tf.stop_gradient`, which training applies in `training.window.start_state`.
"""

from collections.abc import Callable

import tensorflow as tf

from tbptt.types import Nest, State


def zeros_like(state: State) -> State:
    """Returns a state of the same structure with all leaves zero."""
    return tf.nest.map_structure(tf.zeros_like, state)


def select(rows: tf.Tensor, chosen: State, other: State) -> State:
    """Selects row by row: `chosen` where `rows` is true, as at a reset, and `other` elsewhere.

    It is a selection, not a product with a mask: a value that is not chosen has no effect, even if
    it is NaN, and a chosen row gets exactly the gradient of its result.

    Args:
      rows: `[B]` bool.
      chosen: a state, leaves `[B, ...]`.
      other: a state of the same structure.

    Example:
      >>> select(tf.constant([True, False]), tf.constant([1., 1.]), tf.constant([7., 7.])).numpy()
      array([1., 7.], dtype=float32)
    """

    def leaf(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
        shape = [-1] + [1] * (len(b.shape) - 1)
        return tf.where(tf.reshape(rows, shape), a, b)

    return tf.nest.map_structure(leaf, chosen, other)


def detach(state: State) -> State:
    """Applies stop_gradient to a state: the same numbers, through which no gradient flows."""
    return tf.nest.map_structure(tf.stop_gradient, state)


def scale_gradient(scale: tf.Tensor, state: State) -> State:
    """Returns the same state, with the gradient that flows back through row b times `scale[b]`.

    If `scale` is 0 the gradient is 0, even if it was infinite or NaN.

    Example:
      >>> x = tf.constant([3.0, 3.0])
      >>> with tf.GradientTape() as tape:
      ...     tape.watch(x)
      ...     y = scale_gradient(tf.constant([0.0, 2.0]), x) * x
      >>> tape.gradient(y, x).numpy().tolist()  # of x * x: 6
      [3.0, 9.0]
    """

    @tf.custom_gradient
    def leaf(part: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        return tf.identity(part), lambda gradient: scale_rows(scale, gradient)

    return tf.nest.map_structure(leaf, state)


def scale_rows(factor: tf.Tensor, state: State) -> State:
    """Multiplies row b by `factor[b]` >= 0; a row with factor 0 becomes 0, even if it is NaN.

    Example:
      >>> scale_rows(tf.constant([0.0, 2.0]), tf.constant([[np.inf], [1.0]])).numpy().tolist()
      [[0.0], [2.0]]
    """

    def leaf(part: tf.Tensor) -> tf.Tensor:
        of_row = tf.reshape(tf.cast(factor, part.dtype), [-1] + [1] * (len(part.shape) - 1))
        return tf.where(of_row > 0, part * of_row, tf.zeros_like(part))

    return tf.nest.map_structure(leaf, state)


def take_rows(state: State, rows: Nest) -> State:
    """Returns the rows with these indices, in this order.

    Example:
      >>> take_rows(tf.constant([[1.], [2.], [3.]]), [2, 0]).numpy().tolist()
      [[3.0], [1.0]]
    """
    return tf.nest.map_structure(lambda leaf: tf.gather(leaf, rows), state)


def named_leaves(state: State, prefix: str = "") -> dict[str, tf.Tensor]:
    """Returns the leaves of a state by their path.

    Example:
      >>> list(named_leaves(({"a": tf.zeros([1])}, tf.zeros([1]))))
      ['0/a', '1']
    """
    if hasattr(state, "_asdict"):
        state = state._asdict()
    if isinstance(state, list | tuple):
        state = {str(i): part for i, part in enumerate(state)}
    if not isinstance(state, dict):
        return {prefix.removesuffix("/"): state}
    named: dict[str, tf.Tensor] = {}
    for name, part in state.items():
        named.update(named_leaves(part, f"{prefix}{name}/"))
    return named
