"""Gradient checkpointing, `keep="states"` of a layer: keeps a few states, recomputes the rest.

Less memory for a second forward pass.

Reference: Chen et al. (2016), Training deep nets with sublinear memory cost; Gruslys et al.
  (2016), Memory-efficient backpropagation through time.
"""

import math
from collections.abc import Callable

import tensorflow as tf

from tbptt.types import Nest, State
from tbptt.unroll.closures import check_closes_over_nothing

Run = Callable[[Nest, State, Nest], tuple[tf.Tensor, State]]
"""Runs a segment: `(inputs [S, B, ...], state, weights) -> (outputs [S, B, ...], state)`."""

NO_ADVANCE = (
    "advance was given, but keep='states' keeps no state of every step, only those between "
    "segments. Use keep='gates', or windows that advance by their whole length."
)


def run(run_segment: Run, inputs: Nest, state: State, weights: Nest) -> tuple[tf.Tensor, State]:
    """Runs `run_segment` over a window with gradient checkpointing: keeps states between segments.

    The backward pass runs each segment forward a second time. The memory for a window grows with
    the root of T, beside the inputs and outputs themselves.

    Args:
      run_segment: may close over no variable and no tensor of a floating type.
      inputs: a nest of `[T, B, ...]`; only floating types get a gradient.
      state: a nest of `[B, ...]`.
      weights: a nest of all other tensors that get a gradient.

    Returns:
      The outputs `[T, B, ...]`, and the state after the last step.

    Raises:
      ValueError: `run_segment` closes over a variable or tensor that would get no gradient.

    Example: a running sum.
      >>> total = lambda x, s, w: (tf.cumsum(x) * w + s, tf.reduce_sum(x, 0) * w + s)
      >>> outputs, last = run(total, tf.ones([5, 1]), tf.zeros([1]), tf.constant(2.0))
      >>> outputs[:, 0].numpy().tolist(), last.numpy().tolist()
      ([2.0, 4.0, 6.0, 8.0, 10.0], [10.0])
    """
    steps = tf.nest.flatten(inputs)[0].shape[0]
    length = segment_length(steps)
    count, rest = divmod(steps, length)
    head = tf.nest.map_structure(
        lambda x: tf.reshape(x[: count * length], [count, length, *x.shape[1:]]), inputs
    )
    outputs, state = _run_equal(run_segment, head, state, weights)
    outputs = tf.reshape(outputs, [count * length, *outputs.shape[2:]])
    if rest == 0:
        return outputs, state
    tail = tf.nest.map_structure(lambda x: x[count * length :], inputs)
    last, state = run_segment(tail, state, weights)  # shorter than a segment: not recomputed
    return tf.concat([outputs, last], axis=0), state


def segment_length(steps: int) -> int:
    """Returns a segment length near the root of `steps`, if possible a divisor of it.

    >>> [segment_length(steps) for steps in (1, 7, 35, 64, 512)]
    [1, 3, 5, 8, 16]
    """
    root = math.sqrt(steps)
    near = range(max(1, math.ceil(root / 1.5)), math.floor(root * 1.5) + 1)
    return min(near, key=lambda length: (steps % length, abs(length - root)))


def _run_equal(
    run_segment: Run, inputs: Nest, state: State, weights: Nest
) -> tuple[tf.Tensor, State]:
    """Runs segments of equal length; `inputs` is a nest of `[count, length, B, ...]`."""
    given = (inputs, state, weights)
    count = tf.nest.flatten(inputs)[0].shape[0]

    def loop(body: Callable, carried: list, kept: list[tf.TensorSpec]) -> tuple[list, list]:
        """Runs `body(k, carried) -> (carried, kept, index)` for all k; stores `kept` at `index`."""
        arrays = [tf.TensorArray(s.dtype, size=count, element_shape=s.shape) for s in kept]

        def turn(k: tf.Tensor, carried: list, arrays: list) -> tuple:
            carried, kept, index = body(k, carried)
            return k + 1, carried, [a.write(index, x) for a, x in zip(arrays, kept, strict=True)]

        _, carried, arrays = tf.while_loop(
            lambda k, *_: k < count,
            turn,
            (tf.constant(0), carried, arrays),
            maximum_iterations=count,
            parallel_iterations=1,
        )
        return carried, [array.stack() for array in arrays]

    @tf.custom_gradient
    def whole(*flat: tf.Tensor) -> tuple[list, Callable]:
        inputs, state, weights = tf.nest.pack_sequence_as(given, flat)
        first = tf.nest.flatten(state)

        def segment(k: tf.Tensor) -> Nest:
            return tf.nest.map_structure(lambda x: tf.gather(x, k), inputs)

        def forward(k: tf.Tensor, parts: list) -> tuple[list, list, tf.Tensor]:
            outputs, new = run_segment(segment(k), tf.nest.pack_sequence_as(state, parts), weights)
            return tf.nest.flatten(new), [outputs, *parts], k

        traced = tf.function(run_segment, autograph=False).get_concrete_function(
            tf.nest.map_structure(lambda x: tf.TensorSpec(x.shape[1:], x.dtype), inputs),
            tf.nest.map_structure(lambda x: tf.TensorSpec(x.shape, x.dtype), state),
            tf.nest.map_structure(lambda x: tf.TensorSpec(x.shape, x.dtype), weights),
        )
        check_closes_over_nothing("What runs a segment", traced)
        spec = traced.structured_outputs[0]
        final, (outputs, *borders) = loop(forward, first, [spec, *first])

        def gradient(d_outputs: tf.Tensor, *d_final: tf.Tensor) -> tuple:
            flat_weights = tf.nest.flatten(weights)
            floats = [x for x in tf.nest.flatten(inputs) if x.dtype.is_floating]

            def backward(k: tf.Tensor, carried: list) -> tuple[list, list, tf.Tensor]:
                index = count - 1 - k
                part = segment(index)
                start = [tf.gather(border, index) for border in borders]
                moving = [x for x in tf.nest.flatten(part) if x.dtype.is_floating]
                groups = [start, moving, flat_weights]
                with tf.GradientTape() as tape:
                    tape.watch(groups)
                    outputs, new = run_segment(
                        part, tf.nest.pack_sequence_as(state, start), weights
                    )
                d_start, d_moving, d_weights = tape.gradient(
                    [outputs, *tf.nest.flatten(new)],
                    groups,
                    output_gradients=[tf.gather(d_outputs, index), *carried[: len(first)]],
                    unconnected_gradients=tf.UnconnectedGradients.ZERO,
                )
                total = [a + d for a, d in zip(carried[len(first) :], d_weights, strict=True)]
                return [*d_start, *total], d_moving, index

            zeros = [tf.zeros_like(w) for w in flat_weights]
            specs = [tf.TensorSpec(x.shape[1:], x.dtype) for x in floats]
            carried, d_floats = loop(backward, [*d_final, *zeros], specs)
            d_moving = iter(d_floats)
            d_inputs = [
                next(d_moving) if x.dtype.is_floating else None for x in tf.nest.flatten(inputs)
            ]
            return (*d_inputs, *carried)

        return [outputs, *final], gradient

    outputs, *final = whole(*tf.nest.flatten(given))
    return outputs, tf.nest.pack_sequence_as(state, final)
