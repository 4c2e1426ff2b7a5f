"""Runs an LSTM or a GRU without options over a whole window by the native kernels.

The equations are those of `unroll.fused`; `kernels.cc` has them with the blocking scheme.
"""

from collections.abc import Callable

import tensorflow as tf

from tbptt.native.calls import call
from tbptt.native.products import weight_gradient
from tbptt.state import detach
from tbptt.types import Controls

Parts = tuple[tf.Tensor, ...]

_ROW = 32  # bfloat16 rows are padded to a multiple of it: PAD in kernels.cc


def lstm(
    z_x: tf.Tensor,
    w_h: tf.Tensor,
    bias: tf.Tensor,
    state: Parts,
    controls: Controls,
    initial_state: Parts | None,
    *,
    mask: tf.Tensor | None = None,
    compute_dtype: tf.DType | None = None,
) -> tuple[tf.Tensor, Parts]:
    """Runs `lstm_step`, without its options, over a window.

    The arguments are those of `fused.lstm.run`, and `bias [4H]`, which the kernel adds to `z_x`.
    """
    return _run(z_x, w_h, bias, None, state, controls, initial_state, mask, compute_dtype)


def gru(
    z_x: tf.Tensor,
    w_h: tf.Tensor,
    bias: tf.Tensor,
    b_h: tf.Tensor,
    state: Parts,
    controls: Controls,
    initial_state: Parts | None,
    *,
    mask: tf.Tensor | None = None,
    compute_dtype: tf.DType | None = None,
) -> tuple[tf.Tensor, Parts]:
    """Runs `gru_step` over a window.

    The arguments are those of `fused.gru.run`, and `bias [3H]`, which the kernel adds to `z_x`.
    """
    return _run(z_x, w_h, bias, b_h, state, controls, initial_state, mask, compute_dtype)


def _run(
    z_x: tf.Tensor,
    w_h: tf.Tensor,
    bias: tf.Tensor,
    b_h: tf.Tensor | None,
    state: Parts,
    controls: Controls,
    initial_state: Parts | None,
    mask: tf.Tensor | None,
    compute_dtype: tf.DType | None,
) -> tuple[tf.Tensor, Parts]:
    """Runs a window: a GRU if there is a bias `b_h`, else an LSTM."""
    reset, gradient_scale, advance = controls
    steps, rows, _ = z_x.shape
    size, is_lstm = w_h.shape[0], b_h is None
    gates = 4 if is_lstm else 3
    rounds = compute_dtype == tf.bfloat16
    nothing = tf.zeros([0])

    def or_nothing(value: tf.Tensor | None, dtype: tf.DType = tf.float32) -> tf.Tensor:
        return tf.cast(nothing, dtype) if value is None else value

    initial = tuple(initial_state) if initial_state is not None else (None, None)
    resets = or_nothing(reset, tf.bool)
    factor = or_nothing(mask)
    array = ([steps, rows, size], tf.float32)
    no_array = ([0], tf.float32)

    @tf.custom_gradient
    def window(*inputs: tf.Tensor) -> tuple[Parts, Callable]:
        del inputs  # passed only so that they get a gradient; the names above are used
        depth = -(-size // _ROW) * _ROW if rounds else size
        hiddens, cells, gate, entered = call(
            "tbptt_unroll_forward",
            [
                z_x,
                w_h,
                bias,
                or_nothing(b_h),
                state[0],
                state[1] if is_lstm else nothing,
                resets,
                or_nothing(initial[0]),
                or_nothing(initial[1]) if is_lstm else nothing,
                factor,
            ],
            [
                array,
                array if is_lstm else no_array,
                ([steps, rows, 4 * size], tf.float32),
                ([steps, rows, depth], tf.bfloat16 if rounds else tf.float32),
            ],
            gates=gates,
        )
        states = (hiddens, cells) if is_lstm else (hiddens,)
        final = tuple(
            part[-1] if advance is None else tf.gather(part, advance - 1) for part in states
        )

        def gradient(d_outputs: tf.Tensor, *d_final: tf.Tensor) -> Parts:
            learned = initial_state is not None
            wanted = ([rows, size], tf.float32)
            d_z, d_inputs, d_hidden, d_cell, d_initial_hidden, d_initial_cell = call(
                "tbptt_unroll_backward",
                [
                    d_outputs,
                    d_final[0],
                    d_final[1] if is_lstm else nothing,
                    w_h,
                    gate,
                    states[-1],
                    state[-1],
                    resets,
                    or_nothing(gradient_scale),
                    or_nothing(initial[len(state) - 1]),
                    factor,
                ],
                [
                    ([steps, rows, gates * size], tf.float32),
                    no_array if is_lstm else ([steps, rows, gates * size], tf.float32),
                    wanted,
                    wanted if is_lstm else no_array,
                    wanted if learned else no_array,
                    wanted if learned and is_lstm else no_array,
                ],
                gates=gates,
                rounds=int(rounds),
            )
            d_w_h = weight_gradient(entered, d_z, size, rounds=rounds)
            d_state = (d_hidden, d_cell)[: len(state)]
            d_initial = (d_initial_hidden, d_initial_cell)[: len(state) if learned else 0]
            if is_lstm:
                return (d_z, d_w_h, tf.reduce_sum(d_z, axis=[0, 1]), *d_state, *d_initial)
            d_bias = tf.reduce_sum(d_inputs, axis=[0, 1])
            d_b_h = tf.reduce_sum(d_z[..., 2 * size :], axis=[0, 1])
            return (d_inputs, d_w_h, d_bias, d_b_h, *d_state, *d_initial)

        return (hiddens, *final), gradient

    given = (z_x, w_h, bias, *(() if is_lstm else (b_h,)), *state, *(initial_state or ()))
    outputs, *final = window(*given)
    return outputs, tuple(final) if advance is None else detach(tuple(final))
