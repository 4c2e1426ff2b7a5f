"""The same weights and windows in PyTorch: loss, all gradients and the carried state.

pip install -e '.[torch]' && pytest -m torch -n 0 -s
"""

import numpy as np
import pytest
import tensorflow as tf

import tbptt
from tbptt import optimizers
from tbptt.checkpoint import load_torch
from tbptt.training.window import apply_update, window_gradients

ROWS, STEPS, WINDOWS, VOCABULARY, EMBEDDING, HIDDEN = 8, 16, 20, 50, 24, 32
RATE = 0.5


@pytest.mark.torch
def test_twenty_windows_equal_torch():
    """Each window's loss and gradients, the parameters moving by SGD and the state carried."""
    torch = pytest.importorskip("torch")
    seeds = tbptt.split_seed(tbptt.make_seed(0), 3)
    core = tbptt.Stack(
        [
            tbptt.LSTM(EMBEDDING, HIDDEN, seed=seeds[0]),
            tbptt.LSTM(HIDDEN, HIDDEN, seed=seeds[1]),
        ]
    )
    model = tbptt.LanguageModel(VOCABULARY, EMBEDDING, core, seed=seeds[2])
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, [ROWS * STEPS * WINDOWS + 1])
    stream = tbptt.ContiguousStream(
        tokens, rows=ROWS, window_length=STEPS, vocabulary_size=VOCABULARY
    )
    embedding, lstm, readout = in_torch(torch, model)
    optimizer = optimizers.sgd(RATE)

    @tf.function(autograph=False, jit_compile=True)
    def step(window, state):
        result = window_gradients(model, "mean", window, state, None)
        apply_update(
            optimizer, model.trainable_variables, (), result.gradients,
            tf.zeros([], tf.int64), tf.constant(True),
        )  # fmt: skip
        return result

    state, torch_state, worst = model.initial_state(ROWS), None, 0.0
    for index in range(WINDOWS):
        window = stream.windows(tbptt.Cursor(index=index), 1)[0].at(0)
        result = step(window, state)
        state = result.state
        modules = (embedding, lstm, readout)
        for parameter in parameters_of(modules):
            parameter.grad = None
        outputs, torch_state = lstm(
            embedding(torch.tensor(window.inputs.numpy()).long()), torch_state
        )
        loss = torch.nn.functional.cross_entropy(
            readout(outputs).flatten(0, 1), torch.tensor(window.targets.numpy()).long().flatten()
        )
        loss.backward()
        torch_state = tuple(part.detach() for part in torch_state)
        ours = float(result.sums["loss"].total / result.sums["loss"].weight)
        worst = max(worst, abs(ours - loss.item()) / loss.item())
        expected = gradients_of(modules)
        names = list(tbptt.named_parameters(model))
        for name, gradient in zip(names, result.gradients, strict=True):
            difference = np.linalg.norm(gradient.numpy() - expected[name])
            worst = max(worst, difference / np.linalg.norm(expected[name]))
        with torch.no_grad():
            for parameter in parameters_of(modules):
                parameter -= RATE * parameter.grad
    print(f"\nlargest relative difference over {WINDOWS} windows: {worst:.2e}")
    assert worst < 1e-5


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "projection"])
def test_imported_weights_give_torch_s_outputs(kind):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    size, more = (EMBEDDING, HIDDEN), dict(num_layers=2)
    if kind == "projection":
        theirs = torch.nn.LSTM(*size, proj_size=5, **more)
        layers = [tbptt.LSTM(EMBEDDING, HIDDEN, projection_size=5, seed=tbptt.make_seed(0))]
        layers.append(tbptt.LSTM(5, HIDDEN, projection_size=5, seed=tbptt.make_seed(1)))
    else:
        theirs, ours = getattr(torch.nn, kind)(*size, **more), getattr(tbptt, kind)
        layers = [
            ours(*size, seed=tbptt.make_seed(0)),
            ours(HIDDEN, HIDDEN, seed=tbptt.make_seed(1)),
        ]
    core = tbptt.Stack(layers)
    load_torch(core, theirs.state_dict())
    inputs = np.random.default_rng(0).normal(size=[STEPS, ROWS, EMBEDDING]).astype(np.float32)
    outputs, _ = core(tf.constant(inputs), core.initial_state(ROWS))
    expected = theirs(torch.tensor(inputs))[0].detach().numpy()
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)


def in_torch(torch, model):
    """Torch modules with the model's weights. Torch's gates are i f g o too."""
    values = {name: v.numpy() for name, v in tbptt.named_parameters(model).items()}
    embedding = torch.nn.Embedding(VOCABULARY, EMBEDDING)
    lstm = torch.nn.LSTM(EMBEDDING, HIDDEN, num_layers=2)
    readout = torch.nn.Linear(HIDDEN, VOCABULARY)
    with torch.no_grad():
        embedding.weight.copy_(torch.tensor(values["embedding.table"]))
        readout.weight.copy_(torch.tensor(values["readout.w"].T))
        readout.bias.copy_(torch.tensor(values["readout.b"]))
        for layer in range(2):
            for ours, theirs in (("w_x", "weight_ih"), ("w_h", "weight_hh"), ("b", "bias_ih")):
                value = torch.tensor(values[f"core.cores.{layer}.{ours}"].T)
                getattr(lstm, f"{theirs}_l{layer}").copy_(value)
            getattr(lstm, f"bias_hh_l{layer}").zero_().requires_grad_(False)
    return embedding, lstm, readout


def parameters_of(modules):
    return [p for module in modules for p in module.parameters() if p.requires_grad]


def gradients_of(modules):
    """Torch's gradients under our names."""
    embedding, lstm, readout = modules
    found = {
        "embedding.table": embedding.weight.grad,
        "readout.w": readout.weight.grad.T,
        "readout.b": readout.bias.grad,
    }
    for layer in range(2):
        found[f"core.cores.{layer}.w_x"] = getattr(lstm, f"weight_ih_l{layer}").grad.T
        found[f"core.cores.{layer}.w_h"] = getattr(lstm, f"weight_hh_l{layer}").grad.T
        found[f"core.cores.{layer}.b"] = getattr(lstm, f"bias_ih_l{layer}").grad
    return {name: gradient.numpy() for name, gradient in found.items()}
