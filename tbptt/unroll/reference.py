"""The reference backend: defines what unrolling a cell means; every other backend must equal it."""

from collections.abc import Callable

import tensorflow as tf

from tbptt.state import detach, scale_gradient, select
from tbptt.types import Controls, Nest, State

Cell = Callable[[Nest, State], tuple[Nest, State]]
"""Runs one step of all rows: `(inputs_t, state) -> (output_t, state)`, leaves `[B, ...]`."""


def run(
    cell: Cell,
    inputs: Nest,
    state: State,
    controls: Controls,
    initial_state: State,
) -> tuple[Nest, State]:
    """Runs a cell in a Python loop over t, the definition of resets and cuts; slow to trace."""
    reset, gradient_scale, advance = controls
    outputs, states = [], []
    for t in range(tf.nest.flatten(inputs)[0].shape[0]):
        if gradient_scale is not None:
            state = scale_gradient(gradient_scale[t], state)
        if reset is not None:
            state = select(reset[t], initial_state, state)
        output, state = cell(tf.nest.map_structure(lambda x, t=t: x[t], inputs), state)
        outputs.append(output)
        states.append(state)
    if advance is not None:
        state = detach(tf.nest.map_structure(lambda *s: tf.stack(s)[advance - 1], *states))
    return tf.nest.map_structure(lambda *steps: tf.stack(steps), *outputs), state
