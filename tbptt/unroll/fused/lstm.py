"""Runs an LSTM without options over a whole window with a hand-written gradient."""

from collections.abc import Callable

import tensorflow as tf

from tbptt.precision import product
from tbptt.types import Controls
from tbptt.unroll.fused.loop import (
    Parts,
    constant,
    enter,
    initial_parts,
    loop,
    loop_back,
    masked,
    reached,
    sigmoid,
    states_before,
    weight_gradient,
)


def run(
    z_x: tf.Tensor,
    w_h: tf.Tensor,
    state: Parts,
    controls: Controls,
    initial_state: Parts | None,
    *,
    mask: tf.Tensor | None = None,
    compute_dtype: tf.DType | None = None,
) -> tuple[tf.Tensor, Parts]:
    """Runs `lstm_step`, without its options, over a window, with resets of single rows.

    Args:
      z_x: `[T, B, 4H]`, the input's part of the gates.
      w_h: `[H, 4H]`.
      state: hidden and cell, `[B, H]` each.
      controls: as in `unroll`.
      initial_state: the state of a row after a reset, like `state`. None: zeros, which get no
        gradient.
      mask: `[B, H]`, a factor on the hidden state before `w_h`; it gets no gradient.
      compute_dtype: the type of the products, see `precision.product`.

    Returns:
      The outputs `[T, B, H]`, and (hidden, cell) after the last step.
    """
    reset, gradient_scale, advance = controls
    steps = z_x.shape[0]
    initial = initial_parts(initial_state, state)
    x_i, x_f, x_g, x_o = tf.split(z_x, 4, axis=-1)  # XLA reads four arrays faster than slices

    def forward(t: tf.Tensor, state: Parts) -> tuple[Parts, Parts]:
        hidden, cell = enter(t, state, reset, initial)
        z_h = product(masked(hidden, mask), w_h, compute_dtype)
        h_i, h_f, h_g, h_o = tf.split(z_h, 4, axis=-1)
        i, f, o = sigmoid(x_i[t] + h_i), sigmoid(x_f[t] + h_f), sigmoid(x_o[t] + h_o)
        g = tf.tanh(x_g[t] + h_g)
        cell = f * cell + i * g
        hidden = o * tf.tanh(cell)
        return (hidden, cell), (hidden, cell, i, f, g, o)

    @tf.custom_gradient
    def window(*inputs: tf.Tensor) -> tuple[Parts, Callable]:
        del inputs  # passed only so that they get a gradient; the names above are used
        final, (hiddens, cells, *gates) = loop(forward, state, range(steps))
        final = reached(advance, (hiddens, cells), final)

        def gradient(d_outputs: tf.Tensor, *d_final: tf.Tensor) -> Parts:
            cells_before = states_before(cells, state[1], reset, initial[1])
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
                d_before = masked(product(d_z, w_back, compute_dtype), mask)
                return (d_before, d_cell * f), (d_z,)

            d_first, d_initial, _, (d_z,) = loop_back(
                backward, d_final, steps, reset, gradient_scale, learned=initial_state is not None
            )
            before = states_before(hiddens, state[0], reset, initial[0])
            d_w_h = weight_gradient(masked(before, mask), d_z, compute_dtype)
            return (d_z, d_w_h, *d_first, *d_initial)

        return (hiddens, *final), gradient

    outputs, *final = window(z_x, w_h, *state, *(initial_state or ()))
    return outputs, constant(advance, tuple(final))
