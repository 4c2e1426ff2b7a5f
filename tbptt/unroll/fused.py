"""Cells over a whole window, with gradients of their own.

Differentiated automatically, a loop adds up the gradient of the recurrent weights at every step.
Here the backward loop computes only what the step before needs and keeps what reached the
products; the gradient of the weights is one product over all T * B rows afterwards: as many
operations, but large ones. `lstm` and `gru` have their gradients written out; `run` does the same
for any cell that says which of its products have weights.

Reference: Appleyard, Kocisky & Blunsom (2016), Optimizing performance of recurrent neural
  networks on GPUs, section 3.
"""

from collections.abc import Callable

import tensorflow as tf

from tbptt.precision import product
from tbptt.state import detach, scale_rows, select
from tbptt.types import Nest, State
from tbptt.unroll.closures import check_closes_over_nothing

Parts = tuple[tf.Tensor, ...]

Product = Callable[[tf.Tensor, str], tf.Tensor]
"""`(a [B, D], name) -> a @ matrices[name]`."""

Step = Callable[[Nest, State, Nest, Product], tuple[tf.Tensor, State]]
"""`(inputs_t, state, vectors, product) -> (output_t, state)`: a cell for `run`."""


def lstm(
    z_x: tf.Tensor,
    w_h: tf.Tensor,
    state: Parts,
    reset: tf.Tensor | None,
    initial_state: Parts | None,
    *,
    link: tf.Tensor | None = None,
    advance: tf.Tensor | None = None,
    mask: tf.Tensor | None = None,
    compute_dtype: tf.DType | None = None,
) -> tuple[tf.Tensor, Parts]:
    """What `unroll` makes of `lstm_step` without its options.

    Args:
      z_x: `[T, B, 4H]`, the input's part of the gates.
      w_h: `[H, 4H]`.
      state: hidden and cell, `[B, H]` each.
      reset: `[T, B]` bool, or None.
      initial_state: what a row that resets starts from, like `state`. None: zeros, which get no
        gradient.
      link, advance: as of `unroll`.
      mask: `[B, H]`, what the hidden state is multiplied with before `w_h`; gets no gradient.
      compute_dtype: of the products, see `precision.product`.

    Returns:
      outputs `[T, B, H]`, and (hidden, cell) after the last step.
    """
    steps = z_x.shape[0]
    initial = _initial(initial_state, state)
    x_i, x_f, x_g, x_o = tf.split(z_x, 4, axis=-1)  # XLA reads four arrays faster than slices

    def forward(t: tf.Tensor, state: Parts) -> tuple[Parts, Parts]:
        hidden, cell = _enter(t, state, reset, initial)
        z_h = product(_masked(hidden, mask), w_h, compute_dtype)
        h_i, h_f, h_g, h_o = tf.split(z_h, 4, axis=-1)
        i, f, o = _sigmoid(x_i[t] + h_i), _sigmoid(x_f[t] + h_f), _sigmoid(x_o[t] + h_o)
        g = tf.tanh(x_g[t] + h_g)
        cell = f * cell + i * g
        hidden = o * tf.tanh(cell)
        return (hidden, cell), (hidden, cell, i, f, g, o)

    @tf.custom_gradient
    def window(*inputs: tf.Tensor) -> tuple[Parts, Callable]:
        del inputs  # named above; here they only say what has a gradient
        final, (hiddens, cells, *gates) = _loop(forward, state, range(steps))
        final = _reached(advance, (hiddens, cells), final)

        def gradient(d_outputs: tf.Tensor, *d_final: tf.Tensor) -> Parts:
            cells_before = _before(cells, state[1], reset, initial[1])
            w_back = tf.transpose(w_h)  # once, not in every product

            def backward(t: tf.Tensor, d_state: Parts) -> tuple[Parts, Parts]:
                d_hidden, d_cell = d_state
                i, f, g, o = (gate[t] for gate in gates)
                tanh_cell = tf.tanh(cells[t])
                d_hidden += d_outputs[t]
                d_cell += d_hidden * o * (1.0 - tanh_cell * tanh_cell)
                d_i = d_cell * g * i * (1.0 - i)
                d_f = d_cell * cells_before[t] * f * (1.0 - f)
                d_g = d_cell * i * (1.0 - g * g)
                d_o = d_hidden * tanh_cell * o * (1.0 - o)
                d_z = tf.concat([d_i, d_f, d_g, d_o], axis=-1)
                d_before = _masked(product(d_z, w_back, compute_dtype), mask)
                return (d_before, d_cell * f), (d_z,)

            d_first, d_initial, _, (d_z,) = _loop_back(
                backward, d_final, steps, reset, link, learned=initial_state is not None
            )
            before = _before(hiddens, state[0], reset, initial[0])
            d_w_h = _weight_gradient(_masked(before, mask), d_z, compute_dtype)
            return (d_z, d_w_h, *d_first, *d_initial)

        return (hiddens, *final), gradient

    outputs, *final = window(z_x, w_h, *state, *(initial_state or ()))
    return outputs, _constant(advance, tuple(final))


def gru(
    z_x: tf.Tensor,
    w_h: tf.Tensor,
    b_h: tf.Tensor,
    state: Parts,
    reset: tf.Tensor | None,
    initial_state: Parts | None,
    *,
    link: tf.Tensor | None = None,
    advance: tf.Tensor | None = None,
    mask: tf.Tensor | None = None,
    compute_dtype: tf.DType | None = None,
) -> tuple[tf.Tensor, Parts]:
    """What `unroll` makes of `gru_step`.

    Args:
      z_x: `[T, B, 3H]`, the input's part of the gates.
      w_h: `[H, 3H]`.
      b_h: `[H]`.
      state: hidden, `[B, H]`.
      reset, initial_state, link, advance, mask, compute_dtype: as of `lstm`.

    Returns:
      outputs `[T, B, H]`, and (hidden,) after the last step.
    """
    steps = z_x.shape[0]
    initial = _initial(initial_state, state)
    x_r, x_u, x_n = tf.split(z_x, 3, axis=-1)

    def forward(t: tf.Tensor, state: Parts) -> tuple[Parts, Parts]:
        (hidden,) = _enter(t, state, reset, initial)
        z_h = product(_masked(hidden, mask), w_h, compute_dtype)
        h_r, h_u, h_n = tf.split(z_h, 3, axis=-1)
        r, u, q = _sigmoid(x_r[t] + h_r), _sigmoid(x_u[t] + h_u), h_n + b_h
        n = tf.tanh(x_n[t] + r * q)
        hidden = (1.0 - u) * n + u * hidden
        return (hidden,), (hidden, r, u, n, q)

    @tf.custom_gradient
    def window(*inputs: tf.Tensor) -> tuple[Parts, Callable]:
        del inputs  # named above; here they only say what has a gradient
        final, (hiddens, *gates) = _loop(forward, state, range(steps))
        final = _reached(advance, (hiddens,), final)

        def gradient(d_outputs: tf.Tensor, *d_final: tf.Tensor) -> Parts:
            before = _before(hiddens, state[0], reset, initial[0])
            w_back = tf.transpose(w_h)  # once, not in every product

            def backward(t: tf.Tensor, d_state: Parts) -> tuple[Parts, Parts]:
                d_hidden = d_state[0] + d_outputs[t]
                r, u, n, q = (gate[t] for gate in gates)
                d_n = d_hidden * (1.0 - u) * (1.0 - n * n)
                d_u = d_hidden * (before[t] - n) * u * (1.0 - u)
                d_r = d_n * q * r * (1.0 - r)
                d_h = tf.concat([d_r, d_u, d_n * r], axis=-1)
                d_before = _masked(product(d_h, w_back, compute_dtype), mask)
                return (d_hidden * u + d_before,), (d_h, d_n)

            d_first, d_initial, _, (d_h, d_n) = _loop_back(
                backward, d_final, steps, reset, link, learned=initial_state is not None
            )
            size = b_h.shape[0]
            d_z = tf.concat([d_h[..., : 2 * size], d_n], axis=-1)
            d_b_h = tf.reduce_sum(d_h[..., 2 * size :], axis=[0, 1])
            d_w_h = _weight_gradient(_masked(before, mask), d_h, compute_dtype)
            return (d_z, d_w_h, d_b_h, *d_first, *d_initial)

        return (hiddens, *final), gradient

    outputs, *final = window(z_x, w_h, b_h, *state, *(initial_state or ()))
    return outputs, _constant(advance, tuple(final))


def run(
    step: Step,
    inputs: Nest,
    state: State,
    reset: tf.Tensor | None,
    initial_state: State | None,
    vectors: Nest,
    matrices: dict[str, tf.Tensor],
    *,
    link: tf.Tensor | None = None,
    advance: tf.Tensor | None = None,
    compute_dtype: tf.DType | None = None,
) -> tuple[tf.Tensor, State]:
    """Any cell whose products with weights go through `product`.

    The forward loop keeps states and products. The backward loop computes the rest of the step
    again, lets TensorFlow differentiate it, and keeps what reaches each product.

    Args:
      step: `(inputs_t, state, vectors, product) -> (output_t, state)`. It may use a matrix
        several times, and may close over no variable and no tensor of a floating type.
      inputs: a nest of `[T, B, ...]`; what is not of a floating type gets no gradient.
      state, reset, initial_state, link, advance: as of `unroll`.
      vectors: a nest of parameters that the step uses element by element.
      matrices: `[D, E]` by name.
      compute_dtype: of the products, see `precision.product`.

    Returns:
      outputs `[T, B, ...]`, and the state after the last step.

    Raises:
      ValueError: the step closes over what would get no gradient.
    """
    steps = tf.nest.flatten(inputs)[0].shape[0]
    is_learned = initial_state is not None
    given = (inputs, state, initial_state if is_learned else (), vectors, matrices)
    uses = _matrices_in_order_of_use(step, inputs, state, vectors, matrices)

    @tf.custom_gradient
    def window(*flat: tf.Tensor) -> tuple[Parts, Callable]:
        inputs, state, initial_state, vectors, matrices = tf.nest.pack_sequence_as(given, flat)
        first = tuple(tf.nest.flatten(state))
        initial = _initial(tuple(tf.nest.flatten(initial_state)), first)

        def forward(t: tf.Tensor, parts: Parts) -> tuple[Parts, Parts]:
            made: list[tf.Tensor] = []  # in the order of `uses`

            def keeping(a: tf.Tensor, name: str) -> tf.Tensor:
                made.append(product(a, matrices[name], compute_dtype))
                return made[-1]

            entered = tf.nest.pack_sequence_as(state, _enter(t, parts, reset, initial))
            output, new = step(_at(inputs, t), entered, vectors, keeping)
            new_parts = tuple(tf.nest.flatten(new))
            return new_parts, (output, *new_parts, *made)

        final, (outputs, *kept) = _loop(forward, first, range(steps))
        final = _reached(advance, tuple(kept[: len(first)]), final)

        def gradient(d_outputs: tf.Tensor, *d_final: tf.Tensor) -> Parts:
            count = len(first)
            befores = [_before(kept[k], first[k], reset, initial[k]) for k in range(count)]
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
            d_first, d_initial, d_shared, made = _loop_back(
                backward,
                d_final,
                steps,
                reset,
                link,
                learned=is_learned,
                summed=zeros,
            )
            own = len(made) - 2 * len(uses)  # of the inputs; operands and products come after
            d_inputs = iter(made[:own])
            per_use = zip(uses, made[own : own + len(uses)], made[own + len(uses) :], strict=True)
            parts: dict[str, list[tf.Tensor]] = {name: [] for name in matrices}
            for name, operand, d_product in per_use:
                parts[name].append(_weight_gradient(operand, d_product, compute_dtype))
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
    return outputs, tf.nest.pack_sequence_as(state, _constant(advance, tuple(final)))


def _matrices_in_order_of_use(
    step: Step, inputs: Nest, state: State, vectors: Nest, matrices: dict[str, tf.Tensor]
) -> list[str]:
    """Names of the matrices in the order in which one step uses them, repeated if it repeats them.

    Raises:
      ValueError: the step closes over what would get no gradient.
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
    check_closes_over_nothing("A step for `fused.run`", traced)
    return names


def _reached(advance: tf.Tensor | None, states: Parts, final: Parts) -> Parts:
    """The state to carry on, out of those after every step."""
    return final if advance is None else tuple(tf.gather(s, advance - 1) for s in states)


def _constant(advance: tf.Tensor | None, final: Parts) -> Parts:
    """Nothing goes back through a state in mid-window: the backward loops start at the end."""
    return final if advance is None else detach(final)


def _at(inputs: Nest, t: tf.Tensor) -> Nest:
    return tf.nest.map_structure(lambda part: part[t], inputs)


def _differentiable(inputs: Nest) -> list[tf.Tensor]:
    return [part for part in tf.nest.flatten(inputs) if part.dtype.is_floating]


def _sigmoid(x: tf.Tensor) -> tf.Tensor:
    """The same by a tanh, which XLA has a faster approximation of on a CPU."""
    return 0.5 * tf.tanh(0.5 * x) + 0.5


def _masked(hidden: tf.Tensor, mask: tf.Tensor | None) -> tf.Tensor:
    return hidden if mask is None else hidden * mask


def _initial(learned: Parts | None, state: Parts) -> Parts:
    """What is learned, or zeros like `state`."""
    return tuple(learned or (tf.zeros_like(part) for part in state))


def _enter(t: tf.Tensor, state: Parts, reset: tf.Tensor | None, initial_state: Parts) -> Parts:
    """The state that step t starts from."""
    return state if reset is None else select(reset[t], initial_state, state)


def _before(
    values: tf.Tensor, first: tf.Tensor, reset: tf.Tensor | None, initial: tf.Tensor
) -> tf.Tensor:
    """What each step started from, `[T, B, H]`, out of what each step ended with."""
    before = tf.concat([first[None], values[:-1]], axis=0)
    return before if reset is None else tf.where(reset[..., None], initial[None], before)


def _weight_gradient(a: tf.Tensor, d_z: tf.Tensor, compute_dtype: tf.DType | None) -> tf.Tensor:
    """`sum_t,b a[t, b]^T d_z[t, b]`, `[H, G]`, as one matrix product."""
    dtype = a.dtype
    flat = [
        tf.cast(tf.reshape(part, [-1, part.shape[-1]]), compute_dtype or dtype) for part in (a, d_z)
    ]
    return tf.cast(tf.matmul(*flat, transpose_a=True), dtype)


def _loop_back(
    step: Callable,
    d_state: Parts,
    steps: int,
    reset: tf.Tensor | None,
    link: tf.Tensor | None,
    *,
    learned: bool,
    summed: Parts = (),
) -> tuple[Parts, Parts, Parts, Parts]:
    """Runs `step(t, (*d_state, *summed)) -> ((*d_state before t, *summed), kept)` backwards.

    Returns:
      the gradients of the first state and of the initial state, if that is `learned`; `summed` in
      the end; and all that was kept. At a reset the gradient goes to the initial state and no
      further; elsewhere `link` times it goes on.
    """
    order = range(steps - 1, -1, -1)
    zeros = tuple(tf.zeros_like(part) for part in d_state)
    count, own = len(d_state), len(d_state) + len(summed)
    adds = learned and reset is not None  # only then is anything to be added up at every step

    def back(
        reset_t: tf.Tensor | None, link_t: tf.Tensor | None, d_entered: Parts
    ) -> tuple[Parts, Parts]:
        """From the state a step enters with to the initial state, and to the step before."""
        further, to_initial = d_entered, zeros
        if reset_t is not None:
            further, to_initial = (
                select(reset_t, a, b) for a, b in ((zeros, d_entered), (d_entered, zeros))
            )
        return to_initial, further if link_t is None else scale_rows(link_t, further)

    # What step t + 1 entered with is taken back at the start of step t, where it is one kernel
    # with the rest; nothing is taken back through the end of the window.
    reset_after = None if reset is None else tf.concat([reset[1:], tf.zeros_like(reset[:1])], 0)
    link_after = None if link is None else tf.concat([link[1:], tf.ones_like(link[:1])], 0)

    def linked(t: tf.Tensor, carried: Parts) -> tuple[Parts, Parts]:
        reset_t, link_t = (x if x is None else x[t] for x in (reset_after, link_after))
        to_initial, further = back(reset_t, link_t, carried[:count])
        new, kept = step(t, (*further, *carried[count:own]))
        return (*new, *_sum(carried[own:], to_initial)), kept

    carried, kept = _loop(linked, (*d_state, *summed, *(zeros if adds else ())), order)
    reset_t, link_t = (x if x is None else x[0] for x in (reset, link))
    to_initial, d_first = back(reset_t, link_t, carried[:count])
    d_initial = _sum(carried[own:], to_initial) if adds else zeros[: count if learned else 0]
    return d_first, d_initial, carried[count:own], kept


def _sum(totals: Parts, more: Parts) -> Parts:
    """Of as many as there are totals: of none where nothing is added up."""
    return tuple(a + b for a, b in zip(totals, more, strict=False))


def _loop(step: Callable, carried: Parts, order: range) -> tuple[Parts, Parts]:
    """`step(t, carried) -> (carried, kept)` for t in `order`, in one `tf.while_loop`.

    Returns:
      the last `carried`, and all that was kept: of step t at index t.
    """
    steps = len(order)
    carried_spec = tuple(tf.TensorSpec(part.shape, part.dtype) for part in carried)
    traced = tf.function(step, autograph=False).get_concrete_function(
        tf.TensorSpec([], tf.int32), carried_spec
    )
    _, kept_spec = traced.structured_outputs
    arrays = tuple(
        tf.TensorArray(part.dtype, size=steps, element_shape=part.shape) for part in kept_spec
    )

    def body(k: tf.Tensor, carried: Parts, arrays: tuple) -> tuple:
        t = order.start + order.step * k
        carried, kept = step(t, carried)
        arrays = tuple(array.write(t, part) for array, part in zip(arrays, kept, strict=True))
        return k + 1, carried, arrays

    _, carried, arrays = tf.while_loop(
        lambda k, *_: k < steps,
        body,
        (tf.constant(0), tuple(carried), arrays),
        maximum_iterations=steps,
        parallel_iterations=1,
    )
    return carried, tuple(array.stack() for array in arrays)
