"""Layers against NumPy written out gate by gate, and gradients against finite differences."""

import numpy as np
import pytest
import tensorflow as tf

import tbptt
from tests.conftest import assert_close, make_core, make_inputs, make_state


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def lstm_by_gates(lstm, x, hidden, cell):
    w_x, w_h, b = (v.numpy() for v in (lstm.w_x, lstm.w_h, lstm.b))
    size = hidden.shape[1]
    outputs = []
    for x_t in x:
        gates = []
        for k in range(4):
            block = slice(k * size, (k + 1) * size)
            gates.append(x_t @ w_x[:, block] + hidden @ w_h[:, block] + b[block])
        cell = sigmoid(gates[1]) * cell + sigmoid(gates[0]) * np.tanh(gates[2])
        hidden = sigmoid(gates[3]) * np.tanh(cell)
        outputs.append(hidden)
    return np.stack(outputs), hidden, cell


def gru_by_gates(gru, x, hidden):
    w_x, w_h, b, b_h = (v.numpy() for v in (gru.w_x, gru.w_h, gru.b, gru.b_h))
    size = hidden.shape[1]
    blocks = [slice(k * size, (k + 1) * size) for k in range(3)]
    outputs = []
    for x_t in x:
        from_x = [x_t @ w_x[:, block] + b[block] for block in blocks]
        from_h = [hidden @ w_h[:, block] for block in blocks]
        r = sigmoid(from_x[0] + from_h[0])
        u = sigmoid(from_x[1] + from_h[1])
        n = np.tanh(from_x[2] + r * (from_h[2] + b_h))
        hidden = (1 - u) * n + u * hidden
        outputs.append(hidden)
    return np.stack(outputs), hidden


@pytest.mark.parametrize("dtype", [tf.float32, tf.float64], ids=["float32", "float64"])
def test_lstm_equals_numpy_by_gate(backend, jit, dtype):
    lstm = make_core("lstm", backend=backend, dtype=dtype)
    x, state = make_inputs(6, 2, dtype), make_state(lstm, 2)
    outputs, final = tf.function(lstm, jit_compile=jit)(x, state)
    expected = lstm_by_gates(lstm, x.numpy(), state.hidden.numpy(), state.cell.numpy())
    assert_close([outputs, final.hidden, final.cell], list(expected))


@pytest.mark.parametrize("dtype", [tf.float32, tf.float64], ids=["float32", "float64"])
def test_gru_equals_numpy_by_gate(backend, jit, dtype):
    gru = make_core("gru", backend=backend, dtype=dtype)
    x, state = make_inputs(6, 2, dtype), make_state(gru, 2)
    outputs, final = tf.function(gru, jit_compile=jit)(x, state)
    expected = gru_by_gates(gru, x.numpy(), state.hidden.numpy())
    assert_close([outputs, final.hidden], list(expected))


def test_gradients_equal_finite_differences(kind):
    """With respect to parameters, learned initial states, inputs and state; with a reset."""
    core = make_core(kind, backend="reference", dtype=tf.float64, learned=True)
    inputs, state = make_inputs(4, 2, tf.float64), make_state(core, 2)
    reset = tf.constant([[False, False], [False, False], [True, False], [False, False]])
    parameters = tbptt.named_parameters(core)

    @tf.function(autograph=False)
    def run(*values):
        values = list(values)
        for path in parameters:
            replace(core, path, values.pop(0))
        outputs, final = core(values.pop(0), tf.nest.pack_sequence_as(state, values), reset=reset)
        return tf.add_n([tf.reduce_sum(tf.sin(p)) for p in tf.nest.flatten([outputs, final])])

    values = [v.numpy() for v in parameters.values()]
    values += [inputs.numpy(), *(part.numpy() for part in tf.nest.flatten(state))]
    analytic, numeric = tf.test.compute_gradient(run, values, delta=1e-5)
    for a, b in zip(analytic, numeric, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8)  # what differences can tell


def replace(core, path, value):
    """Puts a tensor where a module has its parameter, so that it is a function of the tensor."""
    *modules, name = path.split(".")
    for step in modules:
        core = core[int(step)] if step.isdecimal() else getattr(core, step)
    setattr(core, name, value)
