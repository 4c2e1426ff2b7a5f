"""An optimizer is a pair of pure functions, and chains of them are optimizers too.

The shape is optax's: a transform turns gradients into updates, which are then added to
the parameters. Updates, parameters and slots are nests of tensors; nothing is assigned.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from tbptt.types import Nest


class GradientTransform(NamedTuple):
    """Attributes:
    init: `parameters -> state`, the slots.
    update: `(updates, state, parameters, step) -> (updates, state)`. `step` is an int64
      scalar, the number of windows seen before this one: what schedules go by.
    description: name and hyperparameters, as JSON holds them; of a chain, a list of those of its
      transforms. A checkpoint records it, so that a run does not go on with others. None: unknown.
    """

    init: Callable[[Nest], Nest]
    update: Callable[[Nest, Nest, Nest, tf.Tensor], tuple[Nest, Nest]]
    description: Any = None


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
        for transform, slots in zip(transforms, state, strict=True):
            updates, slots = transform.update(updates, slots, parameters, step)
            new_state.append(slots)
        return updates, tuple(new_state)

    parts: list[Any] = []
    for transform in transforms:
        told = transform.description
        parts += told if isinstance(told, list) else [told]
    return GradientTransform(init, update, parts)


def stateless(
    function: Callable[[Nest, Nest, tf.Tensor], Nest], description: Any = None
) -> GradientTransform:
    """Makes a transform without slots, from `(updates, parameters, step) -> updates`."""
    return GradientTransform(
        lambda parameters: (),
        lambda updates, state, parameters, step: (
            function(updates, parameters, step),
            (),
        ),
        description,
    )
