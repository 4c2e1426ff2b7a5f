"""An optimizer is a pair of pure functions, and chains of them are optimizers too.

The shape is optax's: a transform turns gradients into updates, which are then added to
the parameters. Updates, parameters and states are nests of tensors; nothing is assigned.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from tbptt.types import Nest


class GradientTransform(NamedTuple):
    """An optimizer, or a part of one, as a pair of pure functions.

    Attributes:
      init: `parameters -> state`, of the optimizer.
      update: `(updates, state, parameters, step) -> (updates, state)`. `step` is an int64
        scalar, the number of windows seen before this one: what schedules go by.
      description: name and hyperparameters, as JSON holds them; of a chain, a list of those of its
        transforms. A checkpoint records it, so that a run does not go on with others. None:
        unknown.
      scale_first: a window's `rate` multiplies its gradient, before `update`, and not the update
        that comes out: where an update is made of several windows, each at its own rate.
    """

    init: Callable[[Nest], Nest]
    update: Callable[[Nest, Nest, Nest, tf.Tensor], tuple[Nest, Nest]]
    description: Any = None
    scale_first: bool = False


def widened(tensor: tf.Tensor) -> tf.Tensor:
    """Returns the tensor in float32 if its type is smaller: squares would leave its range.

    Example:
      >>> widened(tf.constant(300.0, tf.float16)).dtype.name
      'float32'
    """
    return tensor if tensor.dtype.size >= tf.float32.size else tf.cast(tensor, tf.float32)


def bounded(gradient: tf.Tensor) -> tf.Tensor:
    """Returns the gradient, `widened`, with values of infinite square cut to some of finite square.

    One such value would leave a running mean of squares infinite, and its parameter would stand
    still for ever.

    Example:
      >>> float(bounded(tf.constant(1e20))) < 1e19, float(bounded(tf.constant(-1e10)))
      (True, -10000000000.0)
    """
    wide = widened(gradient)
    most = 0.5 * float(wide.dtype.max) ** 0.5
    return tf.clip_by_value(wide, -most, most)


def chain(*transforms: GradientTransform) -> GradientTransform:
    """Applies transforms one after the other; the state is the tuple of theirs.

    Example:
      >>> optimizer = chain(clip_by_global_norm(1.0), sgd(0.1))
      >>> updates, _ = optimizer.update([tf.constant([3., 4.])], optimizer.init([]), [], 0)
      >>> updates[0].numpy().astype(float).round(3).tolist()
      [-0.06, -0.08]
    """

    def init(parameters: Nest) -> Nest:
        return tuple(transform.init(parameters) for transform in transforms)

    def update(updates: Nest, state: Nest, parameters: Nest, step: tf.Tensor) -> tuple[Nest, Nest]:
        new_state = []
        for transform, opt_state in zip(transforms, state, strict=True):
            updates, opt_state = transform.update(updates, opt_state, parameters, step)
            new_state.append(opt_state)
        return updates, tuple(new_state)

    parts: list[Any] = []
    for transform in transforms:
        told = transform.description
        parts += told if isinstance(told, list) else [told]
    scale_first = any(transform.scale_first for transform in transforms)
    return GradientTransform(init, update, parts, scale_first)


def stateless(
    function: Callable[[Nest, Nest, tf.Tensor], Nest], description: Any = None
) -> GradientTransform:
    """Makes a transform without a state, from `(updates, parameters, step) -> updates`."""
    return GradientTransform(
        lambda parameters: (),
        lambda updates, state, parameters, step: (
            function(updates, parameters, step),
            (),
        ),
        description,
    )
