"""Runs a layer's options fused: weight gradients in one product, the rest by TensorFlow."""

from collections.abc import Callable

import tensorflow as tf

from tbptt.precision import product
from tbptt.types import Controls, Nest, State
from tbptt.unroll.closures import check_closes_over_nothing
from tbptt.unroll.fused.loop import (
    Parts,
    constant,
    enter,
    initial_parts,
    loop,
    loop_back,
    reached,
    states_before,
    weight_gradient,
)

Product = Callable[[tf.Tensor, str], tf.Tensor]
"""Multiplies by a weight matrix: `(a [B, D], name) -> a @ matrices[name]`."""

Step = Callable[[Nest, State, Nest, Product], tuple[tf.Tensor, State]]
"""A cell for `run`: `(inputs_t, state, vectors, product) -> (output_t, state)`."""


def run(
    step: Step,
    inputs: Nest,
    state: State,
    controls: Controls,
    initial_state: State | None,
    vectors: Nest,
    matrices: dict[str, tf.Tensor],
    *,
    compute_dtype: tf.DType | None = None,
) -> tuple[tf.Tensor, State]:
    """Runs any cell whose products with weights go through `product` over a window.

    The forward loop stores states and products. The backward loop recomputes the rest of the step,
    lets TensorFlow differentiate it, and stores the gradient of each product.

    Args:
      step: `(inputs_t, state, vectors, product) -> (output_t, state)`. It may use a matrix
        several times, and may close over no variable and no tensor of a floating type.
      inputs: a nest of `[T, B, ...]`; only floating types get a gradient.
      state, controls, initial_state: as in `unroll`.
      vectors: a nest of parameters that the step uses element by element.
      matrices: the weight matrices, `[D, E]`, by name.
      compute_dtype: the type of the products, see `precision.product`.

    Returns:
      The outputs `[T, B, ...]`, and the state after the last step.

    Raises:
      ValueError: the step closes over a variable or tensor that would get no gradient.
    """
    reset, gradient_scale, advance = controls
    steps = tf.nest.flatten(inputs)[0].shape[0]
    is_learned = initial_state is not None
    given = (inputs, state, initial_state if is_learned else (), vectors, matrices)
    uses = _matrices_in_order_of_use(step, inputs, state, vectors, matrices)

    @tf.custom_gradient
    def window(*flat: tf.Tensor) -> tuple[Parts, Callable]:
        inputs, state, initial_state, vectors, matrices = tf.nest.pack_sequence_as(given, flat)
        first = tuple(tf.nest.flatten(state))
        initial = initial_parts(tuple(tf.nest.flatten(initial_state)), first)

        def forward(t: tf.Tensor, parts: Parts) -> tuple[Parts, Parts]:
            made: list[tf.Tensor] = []  # in the order of `uses`

            def keeping(a: tf.Tensor, name: str) -> tf.Tensor:
                made.append(product(a, matrices[name], compute_dtype))
                return made[-1]

            entered = tf.nest.pack_sequence_as(state, enter(t, parts, reset, initial))
            output, new = step(_at(inputs, t), entered, vectors, keeping)
            new_parts = tuple(tf.nest.flatten(new))
            return new_parts, (output, *new_parts, *made)

        final, (outputs, *kept) = loop(forward, first, range(steps))
        final = reached(advance, tuple(kept[: len(first)]), final)

        def gradient(d_outputs: tf.Tensor, *d_final: tf.Tensor) -> Parts:
            count = len(first)
            befores = [states_before(kept[k], first[k], reset, initial[k]) for k in range(count)]
            products = kept[count:]
            back = {name: tf.transpose(w) for name, w in matrices.items()}
            shared = tf.nest.flatten(vectors)

            def backward(t: tf.Tensor, carried: Parts) -> tuple[Parts, Parts]:
                operands: list[tf.Tensor] = []
                results: list[tf.Tensor] = []

                def again(a: tf.Tensor, name: str) -> tf.Tensor:
                    result = products[len(results)][t]

                    @tf.custom_gradient
                    def as_kept(a: tf.Tensor) -> tuple[tf.Tensor, Callable]:
                        del a
                        return result, lambda d: product(d, back[name], compute_dtype)

                    operands.append(a)
                    results.append(as_kept(a))
                    return results[-1]

                inputs_t = _at(inputs, t)
                before = [part[t] for part in befores]
                groups = [before, _differentiable(inputs_t), shared]
                with tf.GradientTape() as tape:
                    tape.watch(groups)
                    entered = tf.nest.pack_sequence_as(state, before)
                    output, new = step(inputs_t, entered, vectors, again)
                groups.append(results)
                d_state, d_inputs, d_shared, d_products = tape.gradient(
                    [output, *tf.nest.flatten(new)],
                    groups,
                    output_gradients=[d_outputs[t], *carried[:count]],
                    unconnected_gradients=tf.UnconnectedGradients.ZERO,
                )
                total = (a + d for a, d in zip(carried[count:], d_shared, strict=True))
                return (*d_state, *total), (*d_inputs, *operands, *d_products)

            zeros = tuple(tf.zeros_like(part) for part in shared)
            d_first, d_initial, d_shared, made = loop_back(
                backward,
                d_final,
                steps,
                reset,
                gradient_scale,
                learned=is_learned,
                summed=zeros,
            )
            own = len(made) - 2 * len(uses)  # of the inputs; operands and products come after
            d_inputs = iter(made[:own])
            per_use = zip(uses, made[own : own + len(uses)], made[own + len(uses) :], strict=True)
            parts: dict[str, list[tf.Tensor]] = {name: [] for name in matrices}
            for name, operand, d_product in per_use:
                parts[name].append(weight_gradient(operand, d_product, compute_dtype))
            d_matrices = {
                name: tf.add_n(parts[name]) if parts[name] else tf.zeros_like(w)
                for name, w in matrices.items()
            }
            of_inputs = [
                next(d_inputs) if part.dtype.is_floating else None
                for part in tf.nest.flatten(inputs)
            ]
            return (*of_inputs, *d_first, *d_initial, *d_shared, *tf.nest.flatten(d_matrices))

        return (outputs, *final), gradient

    outputs, *final = window(*tf.nest.flatten(given))
    return outputs, tf.nest.pack_sequence_as(state, constant(advance, tuple(final)))


def _matrices_in_order_of_use(
    step: Step, inputs: Nest, state: State, vectors: Nest, matrices: dict[str, tf.Tensor]
) -> list[str]:
    """Returns the names of the matrices in the order in which one step uses them, with repeats.

    Raises:
      ValueError: the step closes over a variable or tensor that would get no gradient.
    """
    names: list[str] = []

    def alone(inputs_t: Nest, state: State, vectors: Nest, matrices: dict[str, tf.Tensor]) -> Nest:
        def using(a: tf.Tensor, name: str) -> tf.Tensor:
            names.append(name)
            return a @ matrices[name]

        return step(inputs_t, state, vectors, using)

    spec = tf.TensorSpec
    traced = tf.function(alone, autograph=False).get_concrete_function(
        tf.nest.map_structure(lambda x: spec(x.shape[1:], x.dtype), inputs),
        *tf.nest.map_structure(lambda x: spec(x.shape, x.dtype), (state, vectors, matrices)),
    )
    check_closes_over_nothing("A step for `fused.generic.run`", traced)
    return names


def _at(inputs: Nest, t: tf.Tensor) -> Nest:
    return tf.nest.map_structure(lambda part: part[t], inputs)


def _differentiable(inputs: Nest) -> list[tf.Tensor]:
    return [part for part in tf.nest.flatten(inputs) if part.dtype.is_floating]
