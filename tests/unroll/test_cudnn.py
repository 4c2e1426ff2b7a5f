"""cuDNN's operation: its weights, its shapes and what is refused; without a GPU as far as it goes.

What no GPU is needed for: the flat vector, read by the documented layout and put through the
documented equations in NumPy, gives what the layers give.
"""

import numpy as np
import pytest
import tensorflow as tf

from tbptt.testing import assert_close, assert_same_bits, random_state
from tbptt.types import Controls
from tbptt.unroll import cudnn
from tests.conftest import HIDDEN_SIZE, INPUT_SIZE, make_core, make_inputs

KINDS = ("lstm", "gru")
GATES = {"lstm": 4, "gru": 3}
PACK = {"lstm": cudnn.pack_lstm, "gru": cudnn.pack_gru}
UNPACK = {"lstm": cudnn.unpack_lstm, "gru": cudnn.unpack_gru}
RUN = {"lstm": cudnn.lstm, "gru": cudnn.gru}
STEPS, ROWS = 6, 3


def weights_of(core):
    names = ("w_x", "w_h", "b", "b_h")
    return tuple(tf.convert_to_tensor(getattr(core, n)) for n in names if hasattr(core, n))


def fields(flat, gates, input_size=INPUT_SIZE, size=HIDDEN_SIZE):
    """By gate: input weights [H, D], recurrent weights [H, H], and their biases [H]."""
    found, at = [], 0
    for shape in ([size, input_size], [size, size], [size], [size]):
        count = int(np.prod(shape))
        found.append([flat[at + g * count : at + (g + 1) * count] for g in range(gates)])
        found[-1] = [part.reshape(shape) for part in found[-1]]
        at += gates * count
    assert at == len(flat)
    return found


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def documented_lstm(flat, inputs, hidden, cell):
    """cudnnRNNMode_t, CUDNN_LSTM: gates 0 to 3 are input, forget, new memory, output."""
    w, r, b_w, b_r = fields(flat, 4)
    outputs = []
    for x in inputs:
        z = [x @ w[g].T + hidden @ r[g].T + b_w[g] + b_r[g] for g in range(4)]
        cell = sigmoid(z[1]) * cell + sigmoid(z[0]) * np.tanh(z[2])
        hidden = sigmoid(z[3]) * np.tanh(cell)
        outputs.append(hidden)
    return np.stack(outputs), (hidden, cell)


def documented_gru(flat, inputs, hidden):
    """cudnnRNNMode_t, CUDNN_GRU: gates 0 to 2 are reset, update, new memory."""
    w, r, b_w, b_r = fields(flat, 3)
    outputs = []
    for x in inputs:
        reset = sigmoid(x @ w[0].T + hidden @ r[0].T + b_w[0] + b_r[0])
        update = sigmoid(x @ w[1].T + hidden @ r[1].T + b_w[1] + b_r[1])
        new = np.tanh(x @ w[2].T + reset * (hidden @ r[2].T + b_r[2]) + b_w[2])
        hidden = (1 - update) * new + update * hidden
        outputs.append(hidden)
    return np.stack(outputs), (hidden,)


DOCUMENTED = {"lstm": documented_lstm, "gru": documented_gru}


@pytest.mark.parametrize("kind", KINDS)
def test_documented_equations_on_the_packed_weights_equal_reference(kind):
    """Order, transposition and biases: in float64, so that nothing hides in rounding."""
    core = make_core(kind, backend="reference", dtype=tf.float64)
    inputs, state = make_inputs(STEPS, ROWS, tf.float64), random_state(core, ROWS)
    flat = PACK[kind](*weights_of(core)).numpy()
    documented = DOCUMENTED[kind](flat, inputs.numpy(), *(part.numpy() for part in state))
    assert_close(documented, core(inputs, state))


@pytest.mark.parametrize("kind", KINDS)
def test_documented_equations_on_any_flat_vector_equal_reference_on_the_unpacked(kind):
    """Both biases filled, as weights from elsewhere come: unpacking adds up what adds up."""
    core = make_core(kind, backend="reference", dtype=tf.float64)
    inputs, state = make_inputs(STEPS, ROWS, tf.float64), random_state(core, ROWS)
    size = PACK[kind](*weights_of(core)).shape[0]
    flat = tf.constant(0.5 * np.random.default_rng(2).normal(size=size))
    values = UNPACK[kind](flat, INPUT_SIZE, HIDDEN_SIZE)
    for name, value in zip(("w_x", "w_h", "b", "b_h"), values, strict=False):
        getattr(core, name).assign(value)
    documented = DOCUMENTED[kind](flat.numpy(), inputs.numpy(), *(part.numpy() for part in state))
    assert_close(documented, core(inputs, state))


@pytest.mark.parametrize("kind", KINDS)
def test_unpacking_undoes_packing(kind):
    weights = weights_of(make_core(kind))
    assert_same_bits(UNPACK[kind](PACK[kind](*weights), INPUT_SIZE, HIDDEN_SIZE), weights)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_of_packing_is_unpacking(kind):
    """Each weight gets the gradient that stands in its place; LSTM: of the input's bias alone."""
    weights = weights_of(make_core(kind, dtype=tf.float64))
    with tf.GradientTape() as tape:
        tape.watch(weights)
        flat = PACK[kind](*weights)
        upstream = tf.constant(np.random.default_rng(3).normal(size=flat.shape))
        loss = tf.reduce_sum(flat * upstream)
    gradients = tape.gradient(loss, weights)
    ours = np.array(upstream)
    recurrent = GATES[kind] * HIDDEN_SIZE
    if kind == "gru":
        recurrent -= HIDDEN_SIZE
        ours[-HIDDEN_SIZE - recurrent : -HIDDEN_SIZE] = 0.0
    else:
        ours[-recurrent:] = 0.0
    assert_close(gradients, UNPACK[kind](tf.constant(ours), INPUT_SIZE, HIDDEN_SIZE))


def test_flat_vector_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"flat has shape \[143\], but must be \[144\]"):
        cudnn.unpack_lstm(tf.zeros([143]), INPUT_SIZE, HIDDEN_SIZE)


@pytest.mark.torch
@pytest.mark.parametrize("kind", KINDS)
def test_flat_order_is_torchs(kind):
    """On CUDA, torch hands cuDNN these tensors one behind the other; and the values agree."""
    torch = pytest.importorskip("torch")
    make = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[kind]
    torch.manual_seed(0)
    theirs = make(INPUT_SIZE, HIDDEN_SIZE, dtype=torch.float64)
    parts = [theirs.weight_ih_l0, theirs.weight_hh_l0, theirs.bias_ih_l0, theirs.bias_hh_l0]
    flat = torch.cat([part.detach().flatten() for part in parts]).numpy()
    core = make_core(kind, backend="reference", dtype=tf.float64)
    values = UNPACK[kind](tf.constant(flat), INPUT_SIZE, HIDDEN_SIZE)
    for name, value in zip(("w_x", "w_h", "b", "b_h"), values, strict=False):
        getattr(core, name).assign(value)
    inputs, state = make_inputs(STEPS, ROWS, tf.float64), random_state(core, ROWS)
    given = [torch.tensor(part.numpy())[None] for part in state]
    outputs, final = theirs(
        torch.tensor(inputs.numpy()), tuple(given) if len(given) > 1 else given[0]
    )
    final = final if isinstance(final, tuple) else (final,)
    results = core(inputs, state)
    assert_close([outputs.detach().numpy(), *(f[0].detach().numpy() for f in final)], results)

    # And back: with the second biases folded into the first, the vector is the same.
    with torch.no_grad():
        both = GATES[kind] * HIDDEN_SIZE if kind == "lstm" else 2 * HIDDEN_SIZE
        theirs.bias_ih_l0[:both] += theirs.bias_hh_l0[:both]
        theirs.bias_hh_l0[:both] = 0.0
    folded = torch.cat([part.detach().flatten() for part in parts]).numpy()
    assert_same_bits(PACK[kind](*weights_of(core)), tf.constant(folded))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [tf.float32, tf.float16], ids=["float32", "float16"])
def test_shapes_are_known_when_traced(kind, dtype):
    """Of outputs, state and all gradients; a trace needs no GPU."""
    core = make_core(kind, dtype=dtype)
    weights, state = weights_of(core), tuple(random_state(core, ROWS))

    @tf.function(autograph=False)
    def run(inputs, weights, state):
        with tf.GradientTape() as tape:
            tape.watch([inputs, weights, state])
            outputs, final = RUN[kind](inputs, *weights, state)
            loss = tf.reduce_sum(outputs) + tf.reduce_sum(final[0])
        return outputs, final, tape.gradient(loss, [inputs, weights, state])

    inputs = make_inputs(STEPS, ROWS, dtype)
    traced = run.get_concrete_function(inputs, weights, state)
    outputs, final, gradients = traced.structured_outputs
    assert outputs.shape == [STEPS, ROWS, HIDDEN_SIZE]
    assert outputs.dtype == dtype
    given = tf.nest.flatten([state, inputs, weights, state])
    for found, like in zip(tf.nest.flatten([final, gradients]), given, strict=True):
        assert found.shape == like.shape
        assert found.dtype == dtype


@pytest.mark.parametrize("kind", KINDS)
def test_xla_refuses_by_a_name_that_says_what_to_do(kind):
    core = make_core(kind)
    inputs, state = make_inputs(STEPS, ROWS), tuple(random_state(core, ROWS))
    run = tf.function(RUN[kind], autograph=False, jit_compile=True)
    with pytest.raises(tf.errors.InvalidArgumentError, match="needs_jit_compile_False"):
        run(inputs, *weights_of(core), state)


def see(monkeypatch, gpus, cuda=True):
    """Lets TensorFlow see so many GPUs."""
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: [kind] * gpus)
    monkeypatch.setattr(tf.sysconfig, "get_build_info", lambda: {"is_cuda_build": cuda})


def test_machine_without_a_gpu_is_refused(monkeypatch):
    see(monkeypatch, gpus=0)
    message = (
        "needs a CUDA GPU, but TensorFlow sees 0 GPUs and is a CUDA build. Use backend='fused'"
    )
    with pytest.raises(ValueError, match=message):
        cudnn.check_layer(tf.float32)


def test_gpu_that_is_not_cudas_is_refused(monkeypatch):
    see(monkeypatch, gpus=2, cuda=False)
    with pytest.raises(ValueError, match="TensorFlow sees 2 GPUs and is no CUDA build"):
        cudnn.check_layer(tf.float32)


@pytest.mark.parametrize("dtype", [tf.float32, tf.float16])
def test_machine_with_a_gpu_is_accepted(monkeypatch, dtype):
    see(monkeypatch, gpus=1)
    cudnn.check_layer(
        dtype, peepholes=False, compute_dtype=None, projection_size=None, zoneout=(0.0, 0.0)
    )


@pytest.mark.parametrize("dtype", [tf.float64, tf.bfloat16])
def test_other_dtypes_are_refused(monkeypatch, dtype):
    see(monkeypatch, gpus=1)
    message = rf"dtype \({dtype.name}\) must be float32 or float16 .* Use backend='fused'"
    with pytest.raises(ValueError, match=message):
        cudnn.check_layer(dtype)


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        (dict(peepholes=False, layer_norm=True), r"layer_norm \(True\)"),
        (dict(projection_size=3), r"projection_size \(3\)"),
        (dict(zoneout=(0.0, 0.1)), r"zoneout \(\(0.0, 0.1\)\)"),
        (dict(compute_dtype=tf.bfloat16), r"compute_dtype \(bfloat16\)"),
    ],
)
def test_options_that_cudnn_has_not_are_refused(monkeypatch, options, shown):
    see(monkeypatch, gpus=1)
    with pytest.raises(ValueError, match=rf"{shown} cannot be with backend='cudnn', .* leave"):
        cudnn.check_layer(tf.float32, **options)


def test_what_happens_inside_a_window_is_refused():
    cudnn.check_controls(Controls())
    message = r"reset of shape \[6, 3\] was given, but .* Use backend='fused', or a stream"
    with pytest.raises(ValueError, match=message):
        cudnn.check_controls(Controls(tf.zeros([STEPS, ROWS], tf.bool)))
    with pytest.raises(ValueError, match=r"advance of shape \[\] was given"):
        cudnn.check_controls(Controls(advance=tf.constant(1)))


@pytest.fixture
def full_float32():
    """Products in float32, where a GPU would round to TF32 first."""
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    yield
    tf.config.experimental.enable_tensor_float_32_execution(before)


@pytest.mark.usefixtures("full_float32")
@pytest.mark.skipif(
    not tf.config.list_physical_devices("GPU"), reason="TensorFlow sees no GPU: cuDNN needs one"
)
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_gpu_it_equals_reference(kind):
    """Law 5: outputs, final state, gradients of parameters, inputs and state."""
    core = make_core(kind, backend="reference")
    inputs, state = make_inputs(STEPS, ROWS), random_state(core, ROWS)
    results = []
    for run in (
        lambda x, w, s: core(x, s),
        lambda x, w, s: RUN[kind](x, *w, tuple(s)),
    ):
        weights = [getattr(core, n) for n in ("w_x", "w_h", "b", "b_h") if hasattr(core, n)]
        with tf.GradientTape() as tape:
            tape.watch([inputs, *state])
            outputs, final = run(inputs, weights, state)
            loss = tf.reduce_sum(tf.sin(outputs)) + sum(tf.reduce_sum(part**2) for part in final)
        gradients = tape.gradient(loss, [inputs, *weights, *state])
        results.append([outputs, *final, *gradients])
    assert_close(results[1], results[0])
