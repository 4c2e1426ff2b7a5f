"""Runs a GRU over a whole window with a hand-written gradient."""

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
    b_h: tf.Tensor,
    state: Parts,
    controls: Controls,
    initial_state: Parts | None,
    *,
    mask: tf.Tensor | None = None,
    compute_dtype: tf.DType | None = None,
) -> tuple[tf.Tensor, Parts]:
    """Runs `gru_step` over a window, with resets of single rows and a hand-written gradient.

    Args:
      z_x: `[T, B, 3H]`, the input's part of the gates.
      w_h: `[H, 3H]`.
      b_h: `[H]`.
      state: hidden, `[B, H]`.
      controls, initial_state, mask, compute_dtype: as in `lstm.run`.

    Returns:
      The outputs `[T, B, H]`, and (hidden,) after the last step.
    """
    reset, gradient_scale, advance = controls
    steps = z_x.shape[0]
    initial = initial_parts(initial_state, state)
    x_r, x_u, x_n = tf.split(z_x, 3, axis=-1)

    def forward(t: tf.Tensor, state: Parts) -> tuple[Parts, Parts]:
        (hidden,) = enter(t, state, reset, initial)
        z_h = product(masked(hidden, mask), w_h, compute_dtype)
        h_r, h_u, h_n = tf.split(z_h, 3, axis=-1)
        r, u, q = sigmoid(x_r[t] + h_r), sigmoid(x_u[t] + h_u), h_n + b_h
        n = tf.tanh(x_n[t] + r * q)
        hidden = (1.0 - u) * n + u * hidden
        return (hidden,), (hidden, r, u, n, q)

    @tf.custom_gradient
    def window(*inputs: tf.Tensor) -> tuple[Parts, Callable]:
        del inputs  # passed only so that they get a gradient; the names above are used
        final, (hiddens, *gates) = loop(forward, state, range(steps))
        final = reached(advance, (hiddens,), final)

        def gradient(d_outputs: tf.Tensor, *d_final: tf.Tensor) -> Parts:
            before = states_before(hiddens, state[0], reset, initial[0])
            w_back = tf.transpose(w_h)  # once, not in every product

            def backward(t: tf.Tensor, d_state: Parts) -> tuple[Parts, Parts]:
                d_hidden = d_state[0] + d_outputs[t]
                r, u, n, q = (gate[t] for gate in gates)
                d_n = d_hidden * (1.0 - u) * (1.0 - n * n)
                d_u = d_hidden * (before[t] - n) * u * (1.0 - u)
                d_r = d_n * q * r * (1.0 - r)
                d_h = tf.concat([d_r, d_u, d_n * r], axis=-1)
                d_before = masked(product(d_h, w_back, compute_dtype), mask)
                return (d_hidden * u + d_before,), (d_h, d_n)

            d_first, d_initial, _, (d_h, d_n) = loop_back(
                backward, d_final, steps, reset, gradient_scale, learned=initial_state is not None
            )
            size = b_h.shape[0]
            d_z = tf.concat([d_h[..., : 2 * size], d_n], axis=-1)
            d_b_h = tf.reduce_sum(d_h[..., 2 * size :], axis=[0, 1])
            d_w_h = weight_gradient(masked(before, mask), d_h, compute_dtype)
            return (d_z, d_w_h, d_b_h, *d_first, *d_initial)

        return (hiddens, *final), gradient

    outputs, *final = window(z_x, w_h, b_h, *state, *(initial_state or ()))
    return outputs, constant(advance, tuple(final))
