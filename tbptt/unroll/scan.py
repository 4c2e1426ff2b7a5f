"""The `scan` backend: runs any cell over a window in one `tf.while_loop`, with resets."""

import tensorflow as tf

from tbptt import checks
from tbptt.state import detach, scale_gradient, select
from tbptt.types import Controls, Nest, State
from tbptt.unroll import reference
from tbptt.unroll.reference import Cell


def run(
    cell: Cell,
    inputs: Nest,
    state: State,
    controls: Controls,
    initial_state: State,
) -> tuple[Nest, State]:
    """Runs a cell in a `tf.while_loop`, which TensorFlow differentiates; see `unroll`.

    A single step is run without a loop, as the reference does.
    """
    reset, gradient_scale, advance = controls
    steps = tf.nest.flatten(inputs)[0].shape[0]
    if steps == 1:
        return reference.run(cell, inputs, state, controls, initial_state)
    # A TensorArray and not inputs[t], because the gradient of a slice is as large as the array.
    arrays = tf.nest.map_structure(lambda x: _array(steps, x.dtype, x.shape[1:]).unstack(x), inputs)
    written = tf.nest.map_structure(
        lambda spec: _array(steps, spec.dtype, spec.shape),
        _output_spec(cell, inputs, state),
    )

    def step(t: tf.Tensor, state: State, reached: Nest, written: Nest) -> tuple:
        if gradient_scale is not None:
            state = scale_gradient(gradient_scale[t], state)
        if reset is not None:
            state = select(reset[t], initial_state, state)
        output, state = cell(tf.nest.map_structure(lambda a: a.read(t), arrays), state)
        written = tf.nest.map_structure(lambda a, x: a.write(t, x), written, output)
        if advance is not None:
            reached = tf.nest.map_structure(
                lambda new, old: tf.where(t < advance, new, old), detach(state), reached
            )
        return t + 1, state, reached, written

    _, state, reached, written = tf.while_loop(
        lambda t, *_: t < steps,
        step,
        (tf.constant(0), state, () if advance is None else detach(state), written),
        maximum_iterations=steps,  # XLA needs the bound to allocate values for the gradient
        parallel_iterations=1,
    )
    outputs = tf.nest.map_structure(lambda a: a.stack(), written)
    return outputs, state if advance is None else detach(reached)


def _array(steps: int, dtype: tf.DType, shape: tf.TensorShape) -> tf.TensorArray:
    return tf.TensorArray(dtype, size=steps, element_shape=shape)


def _output_spec(cell: Cell, inputs: Nest, state: State) -> Nest:
    """Returns shapes and dtypes of one step's output; the cell is traced, not run."""
    input_spec = tf.nest.map_structure(lambda x: tf.TensorSpec(x.shape[1:], x.dtype), inputs)
    state_spec = tf.nest.map_structure(lambda s: tf.TensorSpec(s.shape, s.dtype), state)
    traced = tf.function(cell, autograph=False).get_concrete_function(input_spec, state_spec)
    output, new_state = traced.structured_outputs
    checks.check_like(
        "the state a cell returns",
        new_state,
        state_spec,
        "It is the next step's state.",
    )
    return output
