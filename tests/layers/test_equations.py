"""Layers against NumPy written out gate by gate, and gradients against finite differences."""

import numpy as np
import pytest
import tensorflow as tf

import tbptt
from tbptt.layers.dropout import keep_mask
from tbptt.testing import assert_close, random_state
from tests.conftest import CORES, OPTIONS, make_core, make_inputs


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
    if backend == "native" and dtype == tf.float64:
        pytest.skip("the kernels are for float32")
    lstm = make_core("lstm", backend=backend, dtype=dtype)
    x, state = make_inputs(6, 2, dtype), random_state(lstm, 2)
    outputs, final = tf.function(lstm, jit_compile=jit, autograph=False)(x, state)
    expected = lstm_by_gates(lstm, x.numpy(), state.hidden.numpy(), state.cell.numpy())
    assert_close([outputs, final.hidden, final.cell], list(expected))


@pytest.mark.parametrize("dtype", [tf.float32, tf.float64], ids=["float32", "float64"])
def test_gru_equals_numpy_by_gate(backend, jit, dtype):
    if backend == "native" and dtype == tf.float64:
        pytest.skip("the kernels are for float32")
    gru = make_core("gru", backend=backend, dtype=dtype)
    x, state = make_inputs(6, 2, dtype), random_state(gru, 2)
    outputs, final = tf.function(gru, jit_compile=jit, autograph=False)(x, state)
    expected = gru_by_gates(gru, x.numpy(), state.hidden.numpy())
    assert_close([outputs, final.hidden], list(expected))


def normalise(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


def lstm_with_options(lstm, x, hidden, cell, zoneout=(0.0, 0.0)):
    """Peepholes, layer normalisation and projection where the layer has them; zoneout at test."""
    values = {name: v.numpy() for name, v in tbptt.named_parameters(lstm).items()}
    outputs = []
    for x_t in x:
        from_x, from_h = x_t @ values["w_x"], hidden @ values["w_h"]
        if "gain_x" in values:
            from_x = normalise(from_x) * values["gain_x"]
            from_h = normalise(from_h) * values["gain_h"]
        i, f, g, o = np.split(from_x + from_h + values["b"], 4, axis=-1)
        if "peepholes" in values:
            i, f = i + values["peepholes"][0] * cell, f + values["peepholes"][1] * cell
        new_cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
        if "peepholes" in values:
            o = o + values["peepholes"][2] * new_cell
        shown = new_cell
        if "gain_c" in values:
            shown = normalise(new_cell) * values["gain_c"] + values["shift_c"]
        new_hidden = sigmoid(o) * np.tanh(shown)
        if "w_p" in values:
            new_hidden = new_hidden @ values["w_p"]
        hidden = zoneout[0] * hidden + (1 - zoneout[0]) * new_hidden
        cell = zoneout[1] * cell + (1 - zoneout[1]) * new_cell
        outputs.append(hidden)
    return np.stack(outputs), hidden, cell


@pytest.mark.parametrize("kind", [kind for kind in OPTIONS if kind.startswith("lstm")])
def test_lstm_with_options_equals_numpy_by_gate(kind):
    lstm = make_core(kind, dtype=tf.float64)
    x, state = make_inputs(6, 2, tf.float64), random_state(lstm, 2)
    outputs, final = lstm(x, state)
    zoneout = OPTIONS[kind].get("zoneout", (0.0, 0.0))
    expected = lstm_with_options(lstm, x.numpy(), *(s.numpy() for s in state), zoneout)
    assert_close([outputs, final.hidden, final.cell], list(expected))


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_recurrent_dropout_is_one_mask_a_window_on_the_recurrent_product(kind):
    """The same as a layer without, whose recurrent weights lack the dropped units' rows."""
    dropped = make_core(f"{kind}-recurrent-dropout", dtype=tf.float64)
    plain = make_core(kind, dtype=tf.float64)
    x, state = make_inputs(6, 1, tf.float64), random_state(plain, 1)
    seed = tbptt.make_seed(0)
    rate = OPTIONS[f"{kind}-recurrent-dropout"]["recurrent_dropout"]
    keep = keep_mask([1, 4], rate, tbptt.split_seed(seed, 4 if kind == "lstm" else 2)[0])
    assert 0 < np.count_nonzero(keep) < 4  # or the test shows nothing
    plain.w_h.assign(plain.w_h * tf.cast(keep[0], tf.float64)[:, None] / (1 - rate))
    assert_close(dropped(x, state, training=True, seed=seed), plain(x, state))
    assert_close(dropped(x, state), make_core(kind, dtype=tf.float64)(x, state))


def test_weight_dropout_drops_entries_at_its_rate_and_keeps_the_mean():
    lstm = tbptt.LSTM(2, 64, weight_dropout=0.3, seed=tbptt.make_seed(0))
    seen = {"w_h": tf.ones([64, 256])}
    lstm._add_masks({"x": tf.zeros([3, 2, 2])}, seen, tbptt.make_seed(1))
    values, counts = np.unique(seen["w_h"], return_counts=True)
    np.testing.assert_allclose(values, [0, 1 / 0.7], rtol=1e-6)
    assert abs(counts[0] / counts.sum() - 0.3) < 4 * (0.3 * 0.7 / counts.sum()) ** 0.5


def test_zoneout_keeps_the_old_value_bit_for_bit_in_training():
    lstm = make_core("lstm-zoneout")
    state = random_state(lstm, 32)
    _, final = lstm(make_inputs(1, 32), state, training=True, seed=tbptt.make_seed(1))
    for old, new, rate in zip(state, final, OPTIONS["lstm-zoneout"]["zoneout"], strict=True):
        kept = np.mean(old.numpy() == new.numpy())
        assert abs(kept - rate) < 4 * (rate * (1 - rate) / old.numpy().size) ** 0.5


@pytest.mark.parametrize("option", ["recurrent_dropout", "weight_dropout", "zoneout"])
def test_what_is_random_needs_a_seed_and_a_rate_below_one(option):
    def make(rate):
        rates = (rate, 0.0) if option == "zoneout" else rate
        return tbptt.LSTM(3, 4, seed=tbptt.make_seed(0), **{option: rates})

    with pytest.raises(ValueError, match="needs a seed"):
        make(0.5)(make_inputs(2, 1), make(0.5).initial_state(1), training=True)
    with pytest.raises(ValueError, match=option.replace("_", ".")):
        make(1.0)


@pytest.mark.parametrize("kind", [*CORES, "lstm-everything"])
def test_gradients_equal_finite_differences(kind):
    """With respect to parameters, learned initial states, inputs and state; with a reset."""
    core = make_core(kind, backend="reference", dtype=tf.float64, learned=True)
    inputs, state = make_inputs(4, 2, tf.float64), random_state(core, 2)
    rows = [[False, False], [False, False], [True, False], [False, False]]
    reset = tbptt.Controls(tf.constant(rows))
    parameters = tbptt.named_parameters(core)

    @tf.function(autograph=False)
    def run(*values):
        values = list(values)
        for path in parameters:
            replace(core, path, values.pop(0))
        outputs, final = core(values.pop(0), tf.nest.pack_sequence_as(state, values), reset)
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
