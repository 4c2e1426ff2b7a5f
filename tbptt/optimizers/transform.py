"""`GradientTransform`: an optimizer as a pair of pure functions; `chain` combines several.

The interface is that of Optax: a transform turns gradients into updates, which are then added to
the parameters. Updates, parameters and states are nests of tensors; nothing is assigned.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from tbptt.types import Nest


class GradientTransform(NamedTuple):
    """An optimizer, or a part of one, as a pair of pure functions.

    Attributes:
      init: `parameters -> state`, the initial optimizer state.
      update: `(updates, state, parameters, step) -> (updates, state)`. `step` is an int64
        scalar, the number of windows seen before this one, the argument of schedules.
      description: name and hyperparameters, as JSON holds them; of a chain, a list of those of its
        transforms. A checkpoint records it, so that a run does not go on with others. None:
        unknown.
      scale_first: whether a window's `update_scale` multiplies its gradient before `update`,
        instead of the update: for optimizers that make one update of several windows.
    """

    init: Callable[[Nest], Nest]
    update: Callable[[Nest, Nest, Nest, tf.Tensor], tuple[Nest, Nest]]
    description: Any = None
    scale_first: bool = False


def widened(tensor: tf.Tensor) -> tf.Tensor:
    """Casts a tensor to float32 if its type is smaller, in which squares would overflow.

    Example:
      >>> widened(tf.constant(300.0, tf.float16)).dtype.name
      'float32'
    """
    return tensor if tensor.dtype.size >= tf.float32.size else tf.cast(tensor, tf.float32)


def bounded(gradient: tf.Tensor) -> tf.Tensor:
    """Casts a gradient as `widened`, and clips values whose square would be infinite.

    One such value would make a running mean of squares infinite, and its parameter would never
    change again.

    Example:
      >>> float(bounded(tf.constant(1e20))) < 1e19, float(bounded(tf.constant(-1e10)))
      (True, -10000000000.0)
    """
    wide = widened(gradient)
    most = 0.5 * float(wide.dtype.max) ** 0.5
    return tf.clip_by_value(wide, -most, most)


def chain(*transforms: GradientTransform) -> GradientTransform:
    """Applies transforms one after the other; the state is the tuple of their states.

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
    """Makes a transform without a state of a function `(updates, parameters, step) -> updates`."""
    return GradientTransform(
        lambda parameters: (),
        lambda updates, state, parameters, step: (
            function(updates, parameters, step),
            (),
        ),
        description,
    )
