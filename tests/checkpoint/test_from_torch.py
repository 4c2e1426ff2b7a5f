"""Weights of PyTorch: its documented equations in NumPy give what the imported core gives."""

import numpy as np
import pytest
import tensorflow as tf

import tbptt
from tbptt.checkpoint import load_torch
from tbptt.testing import assert_same_bits

D, H, P, STEPS, ROWS = 3, 4, 2, 5, 2
GATES = {"lstm": 4, "gru": 3}


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def state_dict(kind, layers=2, projection=0, bias=True):
    """As `torch.nn.LSTM(D, H, layers, proj_size=projection).state_dict()` names and shapes it."""
    rng = np.random.default_rng(0)
    found, width = {}, D
    for k in range(layers):
        out = projection or H
        shapes = {"weight_ih": [GATES[kind] * H, width], "weight_hh": [GATES[kind] * H, out]}
        if bias:
            shapes |= {"bias_ih": [GATES[kind] * H], "bias_hh": [GATES[kind] * H]}
        if projection:
            shapes["weight_hr"] = [projection, H]
        found |= {f"{name}_l{k}": rng.normal(size=shape) for name, shape in shapes.items()}
        width = out
    return found


def run_in_numpy(kind, weights, layers, inputs):
    """The equations on PyTorch's pages of LSTM and GRU, from a state of zeros."""
    for k in range(layers):
        w_ih, w_hh = weights[f"weight_ih_l{k}"], weights[f"weight_hh_l{k}"]
        zeros = np.zeros(GATES[kind] * H)
        b_ih, b_hh = (weights.get(f"{name}_l{k}", zeros) for name in ("bias_ih", "bias_hh"))
        h, c, outputs = np.zeros([ROWS, w_hh.shape[1]]), np.zeros([ROWS, H]), []
        for x in inputs:
            z_x, z_h = x @ w_ih.T + b_ih, h @ w_hh.T + b_hh
            if kind == "lstm":
                i, f, g, o = np.split(z_x + z_h, 4, axis=-1)
                c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
                h = sigmoid(o) * np.tanh(c)
                if f"weight_hr_l{k}" in weights:
                    h = h @ weights[f"weight_hr_l{k}"].T
            else:
                (r_x, z_x, n_x), (r_h, z_h, n_h) = (np.split(p, 3, axis=-1) for p in (z_x, z_h))
                r, z = sigmoid(r_x + r_h), sigmoid(z_x + z_h)
                h = (1 - z) * np.tanh(n_x + r * n_h) + z * h
            outputs.append(h)
        inputs = np.stack(outputs)
    return inputs


def build(kind, layers=2, projection=0):
    seeds = tbptt.split_seed(tbptt.make_seed(0), layers)
    out = projection or H
    more = dict(projection_size=projection) if projection else {}
    layer = tbptt.LSTM if kind == "lstm" else tbptt.GRU
    cores = [
        layer(out if k else D, H, seed=seeds[k], dtype=tf.float64, **more) for k in range(layers)
    ]
    return tbptt.Stack(cores)


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("lstm", {}),
        ("gru", {}),
        ("lstm", dict(projection=P)),
        ("lstm", dict(bias=False)),
        ("gru", dict(bias=False)),
    ],
    ids=["lstm", "gru", "projection", "lstm without bias", "gru without bias"],
)
def test_imported_core_computes_what_the_equations_of_torch_say(kind, more):
    weights = state_dict(kind, **more)
    core = build(kind, projection=more.get("projection", 0))
    load_torch(core, {f"rnn.{name}": w for name, w in weights.items()}, prefix="rnn.")
    inputs = np.random.default_rng(1).normal(size=[STEPS, ROWS, D])
    outputs, _ = core(tf.constant(inputs), core.initial_state(ROWS))
    np.testing.assert_allclose(outputs, run_in_numpy(kind, weights, 2, inputs), rtol=1e-12)


BAD = {
    "nothing there": (lambda w: {}, "There is no weight_ih_l0 among"),
    "both ways": (lambda w: w | {"weight_ih_l0_reverse": w["weight_ih_l0"]}, "reads both ways"),
    "a plain RNN": (
        lambda w: {name: value[:H] for name, value in w.items()},
        "of neither an LSTM, which has 4",
    ),
    "another kind": (lambda w: state_dict("gru"), "b_h: float64 .4. in the file, nothing in"),
    "fewer layers": (lambda w: state_dict("lstm", 1), "b: nothing in the file, float64 .16."),
    "complex numbers": (
        lambda w: {n: 1j * v for n, v in w.items()},
        "b: complex128 .16. in the file",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_refused_and_nothing_changes(case):
    change, message = BAD[case]
    core = build("lstm")
    before = [variable.numpy() for variable in core.trainable_variables]
    with pytest.raises(ValueError, match=message):
        load_torch(core, change(state_dict("lstm")))
    assert_same_bits(core.trainable_variables, before)
