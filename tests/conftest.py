"""Two logical CPU devices, rare garbage collections, and the cores that the laws are tested on."""

import contextlib
import gc
import itertools
import resource

import numpy as np
import pytest
import tensorflow as tf

import tbptt
from tbptt.native import library
from tbptt.testing import outputs_and_gradients

tf.config.threading.set_intra_op_parallelism_threads(1)  # one test process a core
tf.config.threading.set_inter_op_parallelism_threads(1)
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)


def pytest_collection_finish() -> None:
    """Collects garbage seldom, and leaves out all that is imported by now.

    A trace makes many objects, and few of them are garbage: looking for it every 700 new objects,
    and now and then among the half a million of TensorFlow, is about a tenth of a trace's time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 10, 10)


@contextlib.contextmanager
def full_disk(limit):
    """No file of this process can grow beyond so many bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class ElmanCell(tf.Module):
    """The cell a user might write: a dictionary for a state, two parts, one of them a counter."""

    def __init__(self, input_size: int, hidden_size: int, dtype: tf.DType) -> None:
        super().__init__()
        rng = np.random.default_rng(5)
        self.w = tf.Variable(0.4 * rng.normal(size=[input_size, hidden_size]), dtype=dtype)
        self.u = tf.Variable(0.4 * rng.normal(size=[hidden_size, hidden_size]), dtype=dtype)

    def __call__(self, inputs, state):
        h = tf.tanh(inputs @ self.w + state["h"] @ self.u + 0.1 * state["age"])
        return h, {"h": h, "age": state["age"] + 1.0}


CORES = ("lstm", "gru", "stack", "own")
INPUT_SIZE, HIDDEN_SIZE = 3, 4

# Options of LSTM and GRU that change what they compute: law 5 is tested on them too.
OPTIONS = {
    "lstm-recurrent-dropout": dict(recurrent_dropout=0.4),
    "lstm-weight-dropout": dict(weight_dropout=0.4),
    "lstm-zoneout": dict(zoneout=(0.3, 0.5)),
    "lstm-peepholes": dict(peepholes=True),
    "lstm-layer-norm": dict(layer_norm=True),
    "lstm-projection": dict(projection_size=HIDDEN_SIZE - 1),
    "lstm-everything": dict(
        peepholes=True, layer_norm=True, projection_size=HIDDEN_SIZE, recurrent_dropout=0.4,
        weight_dropout=0.2, zoneout=(0.3, 0.5),
    ),
    "gru-recurrent-dropout": dict(recurrent_dropout=0.4),
    "gru-weight-dropout": dict(weight_dropout=0.4),
}  # fmt: skip


def make_core(kind: str, *, backend: str = "auto", dtype=tf.float32, learned: bool = False, **more):
    """One of `CORES` or `OPTIONS`, the weights always the same."""
    if backend == "native" and library.why_not():
        pytest.skip(library.why_not())
    seeds = tbptt.split_seed(tbptt.make_seed(3), 2)
    options = dict(backend=backend, dtype=dtype, learn_initial_state=learned, **more)
    options |= OPTIONS.get(kind, {})
    if kind.startswith("lstm"):
        core = tbptt.LSTM(INPUT_SIZE, HIDDEN_SIZE, seed=seeds[0], **options)
    elif kind.startswith("gru"):
        core = tbptt.GRU(INPUT_SIZE, HIDDEN_SIZE, seed=seeds[0], **options)
    elif kind == "stack":
        core = tbptt.Stack(
            [
                tbptt.LSTM(INPUT_SIZE, 5, seed=seeds[0], **options),
                tbptt.GRU(5, HIDDEN_SIZE, seed=seeds[1], **options),
            ]
        )
    else:
        core = tbptt.Recurrent(
            ElmanCell(INPUT_SIZE, HIDDEN_SIZE, dtype),
            lambda rows: {
                "h": tf.zeros([rows, HIDDEN_SIZE], dtype),
                "age": tf.zeros([rows, 1], dtype),
            },
            output_size=HIDDEN_SIZE,
            backend=backend,
        )
    _stir(core, dtype)
    return core


def _stir(core: tf.Module, dtype: tf.DType) -> None:
    """Moves biases and learned initial states off zero, where mistakes could hide."""
    rng = np.random.default_rng(7)
    for parameter in core.trainable_variables:
        noise = 0.1 * rng.normal(size=parameter.shape)
        parameter.assign_add(tf.constant(noise, dtype))


def make_inputs(steps: int, rows: int, dtype=tf.float32, seed: int = 11):
    """`[T, B, D]`, and a state that is not the initial one."""
    rng = np.random.default_rng(seed)
    return tf.constant(rng.normal(size=[steps, rows, INPUT_SIZE]), dtype)


def values_of(trainer):
    return [variable.numpy() for variable in trainer.variables]


def put_back(trainer, values):
    """A trainer that begins again is as good as a new one, and is compiled already."""
    for variable, value in zip(trainer.variables, values, strict=True):
        variable.assign(value)


def run_with_gradients(core, inputs, state, controls=None, **options):
    """Outputs, final state and gradients of a core, see `outputs_and_gradients`."""
    parameters = core.trainable_variables
    return outputs_and_gradients(core, parameters, inputs, state, controls, **options)


BACKENDS = ("reference", "scan", "fused", "native")
# Every core and backend, compiled or not, for what is about the loop around them. A user's cell
# that is not compiled is in test_extending.py.
LOOPS = [
    ("lstm", "native", True), ("lstm", "fused", True), ("lstm", "reference", False),
    ("gru", "native", False), ("stack", "native", False), ("own", "scan", True),
]  # fmt: skip
JIT = {"plain": False, "xla": True}


def pytest_generate_tests(metafunc) -> None:
    """Every test that asks for a `kind`, a `backend` or `jit` gets all of them that go together.

    An `other_backend` is any but the reference.
    """
    marks = metafunc.definition.iter_markers("parametrize")
    set_already = {name for mark in marks for name in np.atleast_1d(mark.args[0])}
    choices = {
        "kind": CORES, "backend": BACKENDS, "other_backend": BACKENDS[1:], "jit": JIT,
    }  # fmt: skip
    asked = [name for name in choices if name in metafunc.fixturenames and name not in set_already]
    # A gradient of its own is for LSTM and GRU: a user's cell is differentiated by TensorFlow.
    # The reference compiled is as large as it is long; test_compiled_equals_plain has it. A stack
    # is made of the others: what it adds is seen on two backends. That GRU compiled
    # equals GRU plain is a test of its own.
    cases = [
        case
        for case in itertools.product(*(choices[name] for name in asked))
        if not any(
            pair <= set(case)
            for pair in (
                {"own", "fused"},
                {"own", "native"},
                {"reference", "xla"},
                {"stack", "scan"},
                {"stack", "xla"},
                {"gru", "xla"},
            )
        )
    ]
    if asked:
        ids = ["-".join(case) for case in cases]
        metafunc.parametrize(asked, [[JIT.get(v, v) for v in case] for case in cases], ids=ids)
