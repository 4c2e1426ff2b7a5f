"""Calls from Python: what is refused and how, calls at once, and where the kernels are used."""

import hashlib
import os
import re
import subprocess
import sys
import threading

import numpy as np
import pytest
import tensorflow as tf

import tbptt
from tbptt import native
from tbptt.native import calls, library, products

NOTHING = tf.zeros([0])
INSTEAD = "Use backend='auto', which runs on every machine and has the same parameters."


@pytest.fixture(autouse=True)
def alone():
    """Takes the machine's own kernels, instead of an empty cache for each test."""
    if not library.available():
        pytest.skip(f"the native kernels are not available: {library.why_not()}")


def exactly(text: str) -> str:
    return f"^{re.escape(text)}$"


def unavailable(reason: str) -> str:
    return exactly(f"backend='native' is not available: {reason}. {INSTEAD}")


def make_lstm(**options) -> tbptt.LSTM:
    return tbptt.LSTM(3, 4, seed=tbptt.make_seed(0), **options)


def forward(**changed) -> list[tf.Tensor]:
    """Calls the forward loop of an LSTM of 4 units by hand: 3 steps of 2 rows."""
    given = {
        "inputs": NOTHING, "w_x": NOTHING, "z_x": tf.ones([3, 2, 16]), "w_h": tf.ones([4, 16]),
        "bias": tf.ones([16]), "b_h": NOTHING,
        "hidden": tf.ones([2, 4]), "cell": tf.ones([2, 4]), "reset": tf.cast(NOTHING, tf.bool),
        "initial_hidden": NOTHING, "initial_cell": NOTHING, "mask": NOTHING,
    }  # fmt: skip
    state, gates = ([3, 2, 4], tf.float32), ([3, 2, 16], tf.float32)
    results = [state, state, gates, changed.pop("entered", state)]
    number = changed.pop("gates", 4)
    return calls.call("tbptt_unroll_forward", [*(given | changed).values()], results, gates=number)


def test_shape_that_is_not_known_is_refused_when_tracing():
    program = tf.function(
        lambda a: products.product(a, tf.ones([2, 2])),
        autograph=False,
        input_signature=[tf.TensorSpec([None, 2])],
    )
    wrong = (
        "argument 0 of tbptt_product has shape (None, 2), but a native kernel needs one that is "
        "known when the program is traced. Use backend='fused'."
    )
    with pytest.raises(ValueError, match=exactly(wrong)):
        program(tf.ones([3, 2]))


def test_type_that_no_kernel_takes_is_refused_before_the_call():
    wrong = (
        "argument 1 of tbptt_product is float64, but a native kernel takes float32, bfloat16 and "
        "bool. Use backend='fused'."
    )
    with pytest.raises(TypeError, match=exactly(wrong)):
        products.product(tf.ones([2, 2]), tf.ones([2, 2], tf.float64))


def test_layer_refuses_a_state_of_another_shape_before_the_call():
    core = make_lstm(backend="native")
    with pytest.raises(ValueError, match=r"state has shape \[3, 4\], but must be \[2, any\]"):
        core(tf.ones([5, 2, 3]), core.initial_state(3))


BY_HAND = {
    "inputs must have the shape [T, B, ...]": {"z_x": tf.ones([3, 2])},
    "a window must have at least one step": {"z_x": NOTHING, "inputs": tf.ones([0, 2, 3])},
    "z_x must have the shape [ 3 2 16 ], but has [ 3 2 5 ]": {"z_x": tf.ones([3, 2, 5])},
    "w_x must have the shape [ 3 16 ], but has [ 0 ]": {
        "z_x": NOTHING, "inputs": tf.ones([3, 2, 3])
    },
    "w_h must have the shape [ 4 16 ], but has [ 4 15 ]": {"w_h": tf.ones([4, 15])},
    "w_h must have the shape [ 4 16 ], but has [ 4 16 ] of another type": {
        "w_h": tf.ones([4, 16], tf.bfloat16)
    },
    "hidden must have the shape [ 2 4 ], but has [ ]": {"hidden": tf.ones([])},
    "cell must have the shape [ 2 4 ], but has [ 0 ]": {"cell": NOTHING},
    "reset must have the shape [ 3 2 ], but has [ 3 2 ] of another type": {
        "reset": tf.ones([3, 2])
    },
    "the initial cell must have the shape [ 2 4 ], but has [ 1 ]": {"initial_cell": tf.ones([1])},
    "mask must have the shape [ 2 4 ], but has [ 4 2 ]": {"mask": tf.ones([4, 2])},
    "entered must have the shape [ 3 2 32 ], but has [ 3 2 4 ]": {
        "entered": ([3, 2, 4], tf.bfloat16)
    },
}  # fmt: skip


@pytest.mark.parametrize("sentence", BY_HAND)
def test_wrong_arguments_that_reach_the_kernel_come_back_as_a_sentence(sentence):
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        forward(**BY_HAND[sentence])
    assert caught.value.message.split(" [Op")[0].endswith(f"tbptt: {sentence}")


def test_wrong_call_leaves_the_next_one_right():
    with pytest.raises(tf.errors.InvalidArgumentError):
        forward(gates=5)
    first, second = forward(), forward()
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def test_product_refuses_matrices_that_do_not_belong_together():
    with pytest.raises(tf.errors.InvalidArgumentError, match="tbptt: b must have the shape"):
        products.product(tf.ones([2, 3]), tf.ones([2, 3]))
    empty = products.product(tf.ones([2, 0]), tf.ones([0, 3]))
    np.testing.assert_array_equal(empty, np.zeros([2, 3]))


def window(kind: str, compute_dtype: tf.DType | None, seed: int):
    """Returns a compiled window with gradients, so large that helpers join, and its inputs."""
    make = {"lstm": tbptt.LSTM, "gru": tbptt.GRU}[kind]
    core = make(5, 100, seed=tbptt.make_seed(seed), backend="native", compute_dtype=compute_dtype)
    inputs = tf.constant(np.random.default_rng(seed).normal(size=[6, 33, 5]), tf.float32)

    @tf.function(autograph=False, jit_compile=True)
    def run(x: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            outputs, final = core(x, core.initial_state(33))
            loss = tf.reduce_sum(tf.sin(outputs))
        return [outputs, *final, *tape.gradient(loss, core.trainable_variables)]

    return run, inputs


def digests() -> list[str]:
    """Returns a digest of all that a window of each kind computes."""
    found = []
    for kind in ("lstm", "gru"):
        for compute_dtype in (None, tf.bfloat16):
            run, inputs = window(kind, compute_dtype, 1)
            content = b"".join(tensor.numpy().tobytes() for tensor in run(inputs))
            found.append(hashlib.sha256(content).hexdigest())
    return found


def digests_with(threads: int) -> list[str]:
    program = (
        "import tensorflow as tf\n"
        f"tf.config.threading.set_intra_op_parallelism_threads({threads})\n"
        "from tests.native import test_calls\nprint(*test_calls.digests())"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.split()


def test_number_of_threads_does_not_change_a_bit():
    here = digests()
    assert len(set(here)) == 4
    assert digests_with(1) == here
    assert digests_with(3) == here


def test_programs_at_once_compute_what_each_computes_alone():
    programs = [window(kind, None, seed) for seed, kind in enumerate(("lstm", "gru", "lstm"))]
    alone = [[tensor.numpy() for tensor in run(inputs)] for run, inputs in programs]
    found: dict[int, list] = {}

    def repeat(k: int) -> None:
        run, inputs = programs[k]
        found[k] = [[tensor.numpy() for tensor in run(inputs)] for _ in range(10)]

    threads = [threading.Thread(target=repeat, args=(k,)) for k in range(len(programs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k, expected in enumerate(alone):
        for results in found[k]:
            for result, value in zip(results, expected, strict=True):
                np.testing.assert_array_equal(result, value)


OPTIONS = {
    "peepholes (True)": {"peepholes": True},
    "layer_norm (True)": {"layer_norm": True},
    "projection_size (2)": {"projection_size": 2},
    "zoneout ((0.0, 0.1))": {"zoneout": (0.0, 0.1)},
}


@pytest.mark.parametrize("given", OPTIONS)
def test_option_that_the_kernels_do_not_have_is_refused(given):
    name = given.split()[0]
    wrong = (
        f"{given} cannot be with backend='native', whose kernels have no such option. Use "
        f"backend='auto' or 'fused', or leave {name} off."
    )
    with pytest.raises(ValueError, match=exactly(wrong)):
        make_lstm(backend="native", **OPTIONS[given])


@pytest.mark.parametrize(
    "make", [make_lstm, lambda **options: tbptt.GRU(3, 4, seed=tbptt.make_seed(0), **options)]
)
def test_types_that_the_kernels_do_not_take_are_refused(make):
    with pytest.raises(ValueError, match=unavailable("dtype (float64) must be float32")):
        make(backend="native", dtype=tf.float64)
    with pytest.raises(
        ValueError, match=unavailable("compute_dtype (float16) must be float32 or bfloat16")
    ):
        native.check_layer(tf.float32, tf.float16)
    assert native.resolve("auto", tf.float64, None) == "fused"
    assert native.resolve("auto", tf.float32, tf.float16) == "fused"


def test_other_devices_leave_the_kernels_out(monkeypatch):
    devices = [tf.config.PhysicalDevice(f"/physical_device:{t}:0", t) for t in ("CPU", "GPU")]
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda: devices)
    with pytest.raises(
        ValueError,
        match=unavailable("the kernels are for CPUs, but TensorFlow sees /physical_device:GPU:0"),
    ):
        make_lstm(backend="native")
    assert native.resolve("auto", tf.float32, None) == "fused"


def test_machine_without_kernels_says_why_and_auto_is_fused(monkeypatch):
    monkeypatch.setattr(library, "_result", library.Unavailable("no C++ compiler was found"))
    with pytest.raises(ValueError, match=unavailable("no C++ compiler was found")):
        make_lstm(backend="native")
    assert native.resolve("auto", tf.float32, None) == "fused"
    core = make_lstm(backend="auto")
    outputs, _ = core(tf.ones([5, 2, 3]), core.initial_state(2))
    assert outputs.shape == [5, 2, 4]
    with pytest.raises(library.Unavailable, match="no C"):
        forward()


def test_auto_is_native_where_it_is_available_and_others_stay_what_they_are():
    assert native.resolve("auto", tf.float32, None) == "native"
    assert native.resolve("auto", tf.float32, tf.bfloat16) == "native"
    for backend in ("reference", "scan", "fused", "native"):
        assert native.resolve(backend, tf.float32, None) == backend


def operations(core) -> set[str]:
    """Returns the types of all operations of a window, those of called functions too."""
    traced = tf.function(lambda x: core(x, core.initial_state(2))[0], autograph=False)
    graph = traced.get_concrete_function(tf.TensorSpec([5, 2, 3])).graph.as_graph_def()
    nodes = [*graph.node, *(node for part in graph.library.function for node in part.node_def)]
    return {node.op for node in nodes}


@pytest.mark.parametrize("backend", ["native", "auto"])
def test_kernels_are_left_out_of_programs_for_elsewhere(backend):
    core = make_lstm(backend=backend)
    assert "XlaCallModule" in operations(core)
    with native.left_out():
        assert "XlaCallModule" not in operations(core)
        with native.left_out(False):
            assert "XlaCallModule" in operations(core)
    assert "XlaCallModule" in operations(core)


@pytest.mark.parametrize(
    ("path", "machine", "backend"),
    [
        ("portable", "x86_64", "fused"),
        ("portable", "aarch64", "native"),
        ("avx2", "x86_64", "native"),
    ],
)
def test_kernels_without_vector_instructions_are_for_those_who_ask(
    monkeypatch, path, machine, backend
):
    monkeypatch.setattr(library, "load", lambda: library.Library(path, "x.so", 0.0))
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert native.resolve("auto", tf.float32, None) == backend
    assert native.resolve("native", tf.float32, None) == "native"
