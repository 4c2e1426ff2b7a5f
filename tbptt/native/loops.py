"""Runs an LSTM or a GRU without options over a whole window by the native kernels.

The equations are those of `unroll.fused`; `kernels.cc` has them with the blocking scheme.
"""

from collections.abc import Callable

import tensorflow as tf

from tbptt.native.calls import call
from tbptt.native.products import multiply, weight_gradient
from tbptt.state import detach
from tbptt.types import Controls

Parts = tuple[tf.Tensor, ...]

_ROW = 32  # bfloat16 rows are padded to a multiple of it: PAD in kernels.cc


def lstm(
    inputs: tf.Tensor,
    w_x: tf.Tensor,
    w_h: tf.Tensor,
    bias: tf.Tensor,
    state: Parts,
    controls: Controls,
    initial_state: Parts | None,
    *,
    mask: tf.Tensor | None = None,
    compute_dtype: tf.DType | None = None,
) -> tuple[tf.Tensor, Parts]:
    """Runs an LSTM without further options over a window, with resets of single rows.

    The product with `w_x` is done in the loop, on rows `[x, h]`: the `[T, B, 4H]` numbers that it
    would make before the loop take longer to write and read than to compute.

    Args:
      inputs: `[T, B, D]`, float32.
      w_x, w_h, bias: `[D, 4H]`, `[H, 4H]`, `[4H]`.
      state, controls, initial_state, mask: as in `fused.lstm.run`.
      compute_dtype: bfloat16 rounds the operands of the products. None: float32.

    Returns:
      The outputs `[T, B, H]`, and (hidden, cell) after the last step.
    """
    weights = (inputs, w_x, w_h, bias)
    return _run(weights, state, controls, initial_state, mask, compute_dtype)


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
    """Runs a GRU over a window, with resets of single rows.

    Args:
      z_x: `[T, B, 3H]`, the input's part of the gates, without `bias`.
      w_h, bias, b_h: `[H, 3H]`, `[3H]`, `[H]`.
      state, controls, initial_state, mask, compute_dtype: as in `lstm`.

    Returns:
      The outputs `[T, B, H]`, and (hidden,) after the last step.
    """
    weights = (z_x, w_h, bias, b_h)
    return _run(weights, state, controls, initial_state, mask, compute_dtype)


def _run(
    weights: Parts,
    state: Parts,
    controls: Controls,
    initial_state: Parts | None,
    mask: tf.Tensor | None,
    compute_dtype: tf.DType | None,
) -> tuple[tf.Tensor, Parts]:
    """Runs a window; an LSTM, if the state has a cell, else a GRU."""
    is_lstm, learned = len(state) == 2, initial_state is not None
    rounds = compute_dtype == tf.bfloat16
    rows, size = state[0].shape
    advance = controls.advance

    @tf.custom_gradient
    def window(*inputs: tf.Tensor) -> tuple[Parts, Callable]:
        del inputs  # passed only so that they get a gradient; the names above are used
        hiddens, cells, gates, entered = _forward(
            weights, state, controls, initial_state, mask, rounds=rounds
        )
        states = (hiddens, cells)[: len(state)]
        final = tuple(
            part[-1] if advance is None else tf.gather(part, advance - 1) for part in states
        )

        def gradient(d_outputs: tf.Tensor, *d_final: tf.Tensor) -> Parts:
            w_h = weights[2] if is_lstm else weights[1]
            initial = initial_state[-1] if initial_state is not None else None
            own, no_cell = ([rows, size], tf.float32), ([0], tf.float32)
            array = ([*d_outputs.shape[:2], w_h.shape[1]], tf.float32)
            d_z, d_inputs, *d_states = call(
                "tbptt_unroll_backward",
                [
                    d_outputs,
                    d_final[0],
                    d_final[1] if is_lstm else _given(None),
                    w_h,
                    gates,
                    states[-1],
                    state[-1],
                    _given(controls.reset, tf.bool),
                    _given(controls.gradient_scale),
                    _given(initial),
                    _given(mask),
                ],
                [
                    array,
                    no_cell if is_lstm else array,
                    own,
                    own if is_lstm else no_cell,
                    own if learned else no_cell,
                    own if learned and is_lstm else no_cell,
                ],
                gates=4 if is_lstm else 3,
                rounds=int(rounds),
            )
            d_state = d_states[: len(state)]
            d_initial = d_states[2 : 2 + len(state)] if learned else []
            if is_lstm:
                d_weights = _lstm_gradients(weights, entered, d_z, rounds=rounds)
            else:
                _, d_w_h = weight_gradient(entered, d_z, (0, size), rounds=rounds)
                d_b_h = tf.reduce_sum(d_z[..., 2 * size :], axis=[0, 1])
                d_weights = [d_inputs, d_w_h, tf.reduce_sum(d_inputs, axis=[0, 1]), d_b_h]
            return (*d_weights, *d_state, *d_initial)

        return (hiddens, *final), gradient

    outputs, *final = window(*weights, *state, *(initial_state or ()))
    return outputs, tuple(final) if advance is None else detach(tuple(final))


def _forward(
    weights: Parts,
    state: Parts,
    controls: Controls,
    initial_state: Parts | None,
    mask: tf.Tensor | None,
    *,
    rounds: bool,
) -> list[tf.Tensor]:
    """Calls the forward loop; returns hidden states, cells, gates and operands of all steps."""
    nothing = _given(None)
    rows, size = state[0].shape
    steps = weights[0].shape[0]
    initial = (*(initial_state or (nothing, nothing)), nothing)[:2]
    if len(state) == 2:
        inputs, w_x, w_h, bias = weights
        first, cell, depth = [inputs, w_x, nothing, w_h, bias, nothing], state[1], w_x.shape[0]
    else:
        z_x, w_h, bias, b_h = weights
        first, cell, depth = [nothing, nothing, z_x, w_h, bias, b_h], nothing, 0
    depth += size
    array = ([steps, rows, size], tf.float32)
    return call(
        "tbptt_unroll_forward",
        [*first, state[0], cell, _given(controls.reset, tf.bool), *initial, _given(mask)],
        [
            array,
            array if len(state) == 2 else ([0], tf.float32),
            ([steps, rows, 4 * size], tf.float32),
            ([steps, rows, -(-depth // _ROW) * _ROW], tf.bfloat16)
            if rounds
            else ([steps, rows, depth], tf.float32),
        ],
        gates=4 if len(state) == 2 else 3,
    )


def _lstm_gradients(
    weights: Parts, entered: tf.Tensor, d_z: tf.Tensor, *, rounds: bool
) -> list[tf.Tensor]:
    """Returns the gradients of inputs, both weights and the bias, given those of the gates."""
    inputs, w_x, w_h, _ = weights
    sizes = (w_x.shape[0], w_h.shape[0])
    d_weights = weight_gradient(entered, d_z, sizes, rounds=rounds)
    flat = tf.reshape(d_z, [-1, d_z.shape[-1]])
    d_inputs = tf.reshape(multiply(flat, w_x, transpose_b=True, rounds=rounds), inputs.shape)
    return [d_inputs, *d_weights, tf.reduce_sum(flat, axis=0)]


def _given(value: tf.Tensor | None, dtype: tf.DType = tf.float32) -> tf.Tensor:
    """Returns the value, or an empty tensor, by which a kernel knows that there is none."""
    return tf.zeros([0], dtype) if value is None else value
