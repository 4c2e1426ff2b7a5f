"""Recurrent state: pure functions on nests whose every leaf is `[B, ...]`."""

from collections.abc import Callable

import tensorflow as tf

from tbptt.types import Nest, State


def zeros_like(state: State) -> State:
    """A state of the same structure that remembers nothing."""
    return tf.nest.map_structure(tf.zeros_like, state)


def select(rows: tf.Tensor, chosen: State, other: State) -> State:
    """Row by row, `chosen` where `rows` is true and `other` elsewhere.

    A selection, not a product with a mask: what is not chosen leaves no trace, NaN
    included, and a chosen row gets exactly the gradient of its result.

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
    """The same numbers as constants: no gradient passes."""
    return tf.nest.map_structure(tf.stop_gradient, state)


def scale_gradient(scale: tf.Tensor, state: State) -> State:
    """Returns the same state; the gradient that flows back through row b is scaled by `scale[b]`.

    Where `scale` is 0 nothing goes back, infinity and NaN included.

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
    """Row b times `factor[b]`, `[B]` and not negative; 0 where that is 0, NaN included.

    Example:
      >>> scale_rows(tf.constant([0.0, 2.0]), tf.constant([[np.inf], [1.0]])).numpy().tolist()
      [[0.0], [2.0]]
    """

    def leaf(part: tf.Tensor) -> tf.Tensor:
        of_row = tf.reshape(tf.cast(factor, part.dtype), [-1] + [1] * (len(part.shape) - 1))
        return tf.where(of_row > 0, part * of_row, tf.zeros_like(part))

    return tf.nest.map_structure(leaf, state)


def take_rows(state: State, rows: Nest) -> State:
    """The rows with these indices, in this order.

    Example:
      >>> take_rows(tf.constant([[1.], [2.], [3.]]), [2, 0]).numpy().tolist()
      [[3.0], [1.0]]
    """
    return tf.nest.map_structure(lambda leaf: tf.gather(leaf, rows), state)


def named_leaves(state: State, prefix: str = "") -> dict[str, tf.Tensor]:
    """The parts of a state by their path.

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
