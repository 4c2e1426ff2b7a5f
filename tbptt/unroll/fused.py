"""LSTM and GRU over a whole window, with gradients of their own.

Differentiated automatically, a loop adds up the gradient of the recurrent weights at every step.
Here the backward loop computes only what the step before needs and keeps the gradient of the
gates; the gradient of the weights is one product over all T * B rows afterwards: as many
operations, but large ones.

Reference: Appleyard, Kocisky & Blunsom (2016), Optimizing performance of recurrent neural
  networks on GPUs, section 3.
"""

from collections.abc import Callable

import tensorflow as tf

from tbptt.state import select

Parts = tuple[tf.Tensor, ...]


def lstm(
    z_x: tf.Tensor,
    w_h: tf.Tensor,
    state: Parts,
    reset: tf.Tensor | None,
    initial_state: Parts,
) -> tuple[tf.Tensor, Parts]:
    """What `unroll` makes of `lstm_step`.

    Args:
      z_x: `[T, B, 4H]`, the input's part of the gates.
      w_h: `[H, 4H]`.
      state: hidden and cell, `[B, H]` each.
      reset: `[T, B]` bool, or None.
      initial_state: what a row that resets starts from, like `state`.

    Returns:
      outputs `[T, B, H]`, and (hidden, cell) after the last step.
    """
    steps = z_x.shape[0]
    x_i, x_f, x_g, x_o = tf.split(z_x, 4, axis=-1)  # XLA reads four arrays faster than slices

    def forward(t: tf.Tensor, state: Parts) -> tuple[Parts, Parts]:
        hidden, cell = _enter(t, state, reset, initial_state)
        h_i, h_f, h_g, h_o = tf.split(hidden @ w_h, 4, axis=-1)
        i, f, o = _sigmoid(x_i[t] + h_i), _sigmoid(x_f[t] + h_f), _sigmoid(x_o[t] + h_o)
        g = tf.tanh(x_g[t] + h_g)
        cell = f * cell + i * g
        hidden = o * tf.tanh(cell)
        return (hidden, cell), (hidden, cell, i, f, g, o)

    @tf.custom_gradient
    def run(*inputs: tf.Tensor) -> tuple[Parts, Callable]:
        del inputs  # named above; here they only say what has a gradient
        final, (hiddens, cells, *gates) = _run(forward, state, range(steps))

        def gradient(d_outputs: tf.Tensor, *d_final: tf.Tensor) -> Parts:
            cells_before = _before(cells, state[1], reset, initial_state[1])
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
                return (d_z @ w_back, d_cell * f), (d_z,)

            d_first, d_initial, (d_z,) = _run_back(backward, d_final, steps, reset)
            d_w_h = _product(_before(hiddens, state[0], reset, initial_state[0]), d_z)
            return (d_z, d_w_h, *d_first, *d_initial)

        return (hiddens, *final), gradient

    outputs, *final = run(z_x, w_h, *state, *initial_state)
    return outputs, tuple(final)


def gru(
    z_x: tf.Tensor,
    w_h: tf.Tensor,
    b_h: tf.Tensor,
    state: Parts,
    reset: tf.Tensor | None,
    initial_state: Parts,
) -> tuple[tf.Tensor, Parts]:
    """What `unroll` makes of `gru_step`.

    Args:
      z_x: `[T, B, 3H]`, the input's part of the gates.
      w_h: `[H, 3H]`.
      b_h: `[H]`.
      state: hidden, `[B, H]`.
      reset: `[T, B]` bool, or None.
      initial_state: what a row that resets starts from, like `state`.

    Returns:
      outputs `[T, B, H]`, and (hidden,) after the last step.
    """
    steps = z_x.shape[0]
    x_r, x_u, x_n = tf.split(z_x, 3, axis=-1)

    def forward(t: tf.Tensor, state: Parts) -> tuple[Parts, Parts]:
        (hidden,) = _enter(t, state, reset, initial_state)
        h_r, h_u, h_n = tf.split(hidden @ w_h, 3, axis=-1)
        r, u, q = _sigmoid(x_r[t] + h_r), _sigmoid(x_u[t] + h_u), h_n + b_h
        n = tf.tanh(x_n[t] + r * q)
        hidden = (1.0 - u) * n + u * hidden
        return (hidden,), (hidden, r, u, n, q)

    @tf.custom_gradient
    def run(*inputs: tf.Tensor) -> tuple[Parts, Callable]:
        del inputs  # named above; here they only say what has a gradient
        final, (hiddens, *gates) = _run(forward, state, range(steps))

        def gradient(d_outputs: tf.Tensor, *d_final: tf.Tensor) -> Parts:
            hiddens_before = _before(hiddens, state[0], reset, initial_state[0])
            w_back = tf.transpose(w_h)  # once, not in every product

            def backward(t: tf.Tensor, d_state: Parts) -> tuple[Parts, Parts]:
                d_hidden = d_state[0] + d_outputs[t]
                r, u, n, q = (gate[t] for gate in gates)
                d_n = d_hidden * (1.0 - u) * (1.0 - n * n)
                d_u = d_hidden * (hiddens_before[t] - n) * u * (1.0 - u)
                d_r = d_n * q * r * (1.0 - r)
                d_h = tf.concat([d_r, d_u, d_n * r], axis=-1)
                return (d_hidden * u + d_h @ w_back,), (d_h, d_n)

            d_first, d_initial, (d_h, d_n) = _run_back(backward, d_final, steps, reset)
            size = b_h.shape[0]
            d_z = tf.concat([d_h[..., : 2 * size], d_n], axis=-1)
            d_b_h = tf.reduce_sum(d_h[..., 2 * size :], axis=[0, 1])
            return (d_z, _product(hiddens_before, d_h), d_b_h, *d_first, *d_initial)

        return (hiddens, *final), gradient

    outputs, *final = run(z_x, w_h, b_h, *state, *initial_state)
    return outputs, tuple(final)


def _sigmoid(x: tf.Tensor) -> tf.Tensor:
    """The same by a tanh, which XLA has a faster approximation of on a CPU."""
    return 0.5 * tf.tanh(0.5 * x) + 0.5


def _enter(t: tf.Tensor, state: Parts, reset: tf.Tensor | None, initial_state: Parts) -> Parts:
    """The state that step t starts from."""
    return state if reset is None else select(reset[t], initial_state, state)


def _before(
    values: tf.Tensor, first: tf.Tensor, reset: tf.Tensor | None, initial: tf.Tensor
) -> tf.Tensor:
    """What each step started from, `[T, B, H]`, out of what each step ended with."""
    before = tf.concat([first[None], values[:-1]], axis=0)
    return before if reset is None else tf.where(reset[..., None], initial[None], before)


def _product(hiddens: tf.Tensor, d_z: tf.Tensor) -> tf.Tensor:
    """`sum_t,b h[t, b]^T d_z[t, b]`, `[H, G]`, as one matrix product."""
    h = tf.reshape(hiddens, [-1, hiddens.shape[-1]])
    return tf.matmul(h, tf.reshape(d_z, [-1, d_z.shape[-1]]), transpose_a=True)


def _run_back(
    step: Callable, d_state: Parts, steps: int, reset: tf.Tensor | None
) -> tuple[Parts, Parts, Parts]:
    """Runs `step(t, d_state) -> (d_state before t, kept)` from the last step to the first.

    Returns:
      the gradients of the first state and of the initial state, and all that was kept. At
      a reset the gradient goes to the initial state and no further.
    """
    order = range(steps - 1, -1, -1)
    zeros = tuple(tf.zeros_like(part) for part in d_state)
    if reset is None:
        d_first, kept = _run(step, d_state, order)
        return d_first, zeros, kept
    count = len(d_state)

    def with_reset(t: tf.Tensor, carried: Parts) -> tuple[Parts, Parts]:
        before, kept = step(t, carried[:count])
        to_initial = select(reset[t], before, zeros)
        further = select(reset[t], zeros, before)
        summed = tuple(a + b for a, b in zip(carried[count:], to_initial, strict=True))
        return (*further, *summed), kept

    carried, kept = _run(with_reset, (*d_state, *zeros), order)
    return carried[:count], carried[count:], kept


def _run(step: Callable, carried: Parts, order: range) -> tuple[Parts, Parts]:
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
