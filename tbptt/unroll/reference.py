"""What unrolling means. Every other backend must equal this one."""

from collections.abc import Callable

import tensorflow as tf

from tbptt.state import select
from tbptt.types import Nest, State

Cell = Callable[[Nest, State], tuple[Nest, State]]
"""`(inputs_t, state) -> (output_t, state)`: one step of all rows, leaves `[B, ...]`."""


def run(
    cell: Cell,
    inputs: Nest,
    state: State,
    reset: tf.Tensor | None,
    initial_state: State,
) -> tuple[Nest, State]:
    """A Python loop over t. Slow to trace and to compile, on purpose: it is the definition."""
    outputs = []
    for t in range(tf.nest.flatten(inputs)[0].shape[0]):
        if reset is not None:
            state = select(reset[t], initial_state, state)
        output, state = cell(tf.nest.map_structure(lambda x, t=t: x[t], inputs), state)
        outputs.append(output)
    return tf.nest.map_structure(lambda *steps: tf.stack(steps), *outputs), state
