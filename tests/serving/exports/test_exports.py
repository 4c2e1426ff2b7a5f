"""Law 10 of exports: what was written gives the forward pass; what differs is not written."""

import hashlib
import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

import tbptt
from tbptt import testing
from tbptt.serving.exports import KINDS, ExportError, lite, open_export, stablehlo, write_export
from tbptt.serving.exports.interface import leaf_names
from tbptt.serving.exports.program import Program, example_of
from tests.conftest import make_core, make_inputs
from tests.serving.exports.conftest import RESULT, SEEDS, VOCABULARY
from tests.serving.test_streamer import IDS
from tests.serving.test_streamer import make_model as language_model

FEATURES = make_inputs(6, 3)


def sequence_model(kind="lstm", **options):
    core = make_core(kind, learned=kind != "own", **options)
    return tbptt.SequenceModel(core, 2, tbptt.squared_error, seed=SEEDS[0])


def encoder_decoder():
    decoder = tbptt.LSTM(1, 4, seed=SEEDS[1])
    return tbptt.EncoderDecoder(
        make_core("lstm"), decoder, 1, tbptt.squared_error, steps=2, seed=SEEDS[2]
    )


class Nested(tbptt.SequenceModel):
    """Reads features and switches by name, and returns two outputs."""

    def __call__(self, inputs, *arguments, **options):
        x = inputs["X"] * tf.cast(1 + inputs["On or off"], tf.float32)[..., None]
        outputs, state = super().__call__(x, *arguments, **options)
        return {"value": outputs, "Its square": outputs[..., 0] ** 2}, state


def nested():
    return Nested(make_core("gru"), 2, tbptt.squared_error, seed=SEEDS[0])


def tied():
    core = tbptt.GRU(3, 3, seed=SEEDS[0], keep="states")
    return tbptt.LanguageModel(7, 3, core, seed=SEEDS[1], tied=True)


# "everything": peepholes, layer normalisation, projection and zoneout.
MODELS = {
    "lstm-everything": (lambda: sequence_model("lstm-everything"), FEATURES),
    "stack": (lambda: sequence_model("stack"), FEATURES),
    "own": (lambda: sequence_model("own"), FEATURES),
    "bfloat16": (lambda: sequence_model(compute_dtype=tf.bfloat16), FEATURES),
    "encoder-decoder": (encoder_decoder, FEATURES),
    "nested": (nested, {"X": FEATURES, "On or off": IDS[:6] % 2}),
    **{r: (lambda r=r: language_model(r), IDS[:6]) for r in ("chunked", "adaptive", "sampled")},
    "tied": (tied, IDS[:6]),
}
# StableHLO is the fastest to write; the others are tried where they could differ. The full readout
# is that of the fixture, in every kind.
CASES = [(name, "stablehlo") for name in MODELS if name != "encoder-decoder"]
CASES += [(name, "litert") for name in ("lstm-everything", "own", "bfloat16", "encoder-decoder")]
CASES += [(name, "saved_model") for name in ("lstm-everything", "own")]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_an_export_equals_the_forward_pass(name, kind):
    """Law 10."""
    make, inputs = MODELS[name]
    precision = "bfloat16" if name == "bfloat16" else None
    testing.check_export(make(), inputs, kind, precision=precision)


@pytest.mark.parametrize("kind", KINDS)
def test_any_steps_and_rows_of_every_kind(exports, model, kind):
    """Law 10; 70 rows are two groups of a SavedModel."""
    export = open_export(exports[kind])
    precision = "bfloat16" if kind in ("litert_float16", "litert_int8") else None
    rng = np.random.default_rng(1)
    for steps, rows in ((1, 1), (5, 2), (2, 70)):
        ids = rng.integers(0, 7, [steps, rows])
        reset = rng.random([steps, rows]) < 0.3
        found, state = export.step(ids, export.initial_state(rows), reset)
        controls = tbptt.Controls(tf.constant(reset))
        expected, last = model(tf.constant(ids, tf.int32), model.initial_state(rows), controls)
        testing.assert_close(found, expected, precision, law=10)
        testing.assert_close(list(state.values()), list(last), precision, law=10)


def rest_server(folder):
    """Answers as TensorFlow Serving does to `POST /v1/models/NAME:predict`, in its column form.

    https://www.tensorflow.org/tfx/serving/api_rest. The server itself cannot be installed by pip.
    """
    loaded = tf.saved_model.load(str(folder))

    def predict(body):
        request = json.loads(body)
        signature = loaded.signatures[request["signature_name"]]
        specs = signature.structured_input_signature[1]
        assert set(request["inputs"]) == set(specs)
        given = {name: tf.constant(x, specs[name].dtype) for name, x in request["inputs"].items()}
        answer = {name: x.numpy().tolist() for name, x in signature(**given).items()}
        return json.dumps({"outputs": answer})

    return predict


def test_a_client_of_a_rest_server_carries_the_state(exports, model):
    """Every answer holds the state under the names under which the next request gives it back."""
    predict = rest_server(exports["saved_model"])
    body = json.dumps({"signature_name": "initial_state", "inputs": {"batch": 2}})
    state = json.loads(predict(body))["outputs"]
    ids, outputs = np.array([[1, 4], [0, 2], [6, 3]]), []
    for row in ids.tolist():
        inputs = {"inputs": [row], "reset": [[False, False]], **state}
        state = json.loads(predict(json.dumps({"signature_name": "step", "inputs": inputs})))
        state = state["outputs"]
        outputs.append(state.pop("outputs")[0])
    expected, _ = model(tf.constant(ids, tf.int32), model.initial_state(2))
    testing.assert_close(np.float32(outputs), expected)


def test_an_export_that_forgets_is_found(model, tmp_path, monkeypatch):
    run = stablehlo.Runner._run_step

    def forgets(self, inputs, reset, state):
        return run(self, inputs, reset, {name: 0 * leaf for name, leaf in state.items()})

    monkeypatch.setattr(stablehlo.Runner, "_run_step", forgets)
    with pytest.raises(testing.LawError, match=r"Law 10 .*outputs of the export \(stablehlo\)"):
        testing.check_export(sequence_model("own"), FEATURES, "stablehlo")  # compares one step
    with pytest.raises(ExportError, match=r"kind stablehlo differs from the model after 3 steps"):
        write_export(model, tmp_path / "x", "stablehlo", checked_steps=3)
    assert not list(tmp_path.iterdir())


def test_an_export_that_differs_too_much_is_removed(tmp_path, model):
    with pytest.raises(
        ExportError, match=r"outputs by .*e-05, .* and 1e-09 is allowed\. It was re"
    ):
        write_export(model, tmp_path / "x", "litert_float16", tolerance=1e-9, checked_steps=8)
    assert not list(tmp_path.iterdir())


def test_the_description_says_what_is_there(exports, model):
    export = open_export(exports["litert_int8"])
    content = export.description
    assert content["result"] == RESULT
    assert content["vocabulary_sha256"] == {"vocabulary": VOCABULARY.sha256}
    assert export.preprocessing == {"vocabulary": VOCABULARY, "labels": ["x"]}
    assert content["interface"]["state"][1] == {
        "name": "state_cell", "dtype": "float32", "shape": ["B", 32],
    }  # fmt: skip
    assert 1e-5 < content["checked"]["outputs"] < 0.05
    assert 0 < abs(content["checked"]["loss"] - content["checked"]["original_loss"]) < 0.05
    data = (exports["litert_int8"] / "step.tflite").read_bytes()
    about = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert content["files"]["step.tflite"] == about
    sizes = {kind: (exports[kind] / "step.tflite").stat().st_size for kind in list(KINDS)[1:4]}
    assert sizes["litert"] > 1.4 * sizes["litert_float16"] > 1.4 * sizes["litert_int8"]


def test_names_are_flat_and_unique():
    assert leaf_names({"a b": 0, "a-b": 1, "c": (2, 3)}, "x") == [
        "x_a_b",
        "x_a_b__2",
        "x_c_0",
        "x_c_1",
    ]
    assert leaf_names((), "state") == []
    assert example_of(sequence_model("stack")).shape == (1, 3)
    with pytest.raises(ExportError, match=r"not known what SequenceModel reads.* Give example="):
        Program(sequence_model("own"))


# Runs every kind with neither this package nor its source at hand.
ALONE = """
import json, sys
sys.modules["tbptt"] = None
import numpy as np
import tensorflow as tf
folder, found = sys.argv[1], {}
ids = np.int32([[1, 6], [2, 0], [3, 3]])
reset = np.array([[False, False], [False, True], [False, False]])
model = tf.saved_model.load(folder + "/saved_model")
state = model.signatures["initial_state"](batch=tf.constant(2))
step = model.signatures["step"]
found["saved_model"] = step(inputs=tf.constant(ids), reset=tf.constant(reset), **state)
try:
    from ai_edge_litert.interpreter import Interpreter
except ImportError:
    import warnings
    warnings.simplefilter("ignore")  # TensorFlow says that its interpreter has moved
    Interpreter = tf.lite.Interpreter
interpreter = Interpreter(folder + "/litert/step.tflite")
interpreter.allocate_tensors()
step = interpreter.get_signature_runner()
with np.load(folder + "/litert/initial_state.npz") as file:
    state = dict(file)
outputs = []
for k in range(3):
    results = step(inputs=ids[k:k+1, 1:], reset=reset[k:k+1, 1:], **state)
    outputs.append(results.pop("outputs"))
    state = results
found["litert"] = {"outputs": np.concatenate(outputs), **state}
from tensorflow.compiler.tf2xla.python import xla
content = json.load(open(folder + "/stablehlo/description.json"))["content"]
with np.load(folder + "/stablehlo/parameters.npz") as file:
    given = {"parameters/" + name: value for name, value in file.items()}
with np.load(folder + "/stablehlo/initial_state.npz") as file:
    given |= dict(file)
given |= {"inputs": ids[:1, 1:], "reset": reset[:1, 1:]}
results = xla.call_module(
    [given[name] for name in content["arguments"]], version=9, platforms=["CPU"],
    module=open(folder + "/stablehlo/step.mlir").read().encode(),
    Sout=[[1, 1, 7], [1, 32], [1, 32]], Tout=[tf.float32] * 3,
)
found["stablehlo"] = dict(zip(content["results"], results))
np.savez(sys.argv[2], **{f"{kind} {n}": x for kind, each in found.items() for n, x in each.items()})
"""


def test_exports_run_in_a_clean_process_without_this_package(exports, model, tmp_path):
    """Law 10."""
    to = tmp_path / "found.npz"
    folder = {str(exports[kind].parent) for kind in ("saved_model", "litert", "stablehlo")}.pop()
    command = [sys.executable, "-I", "-W", "error", "-c", ALONE, folder, str(to)]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert "WARNING:" not in ended.stderr.replace("WARNING: All log messages before", "")
    ids = tf.constant([[1, 6], [2, 0], [3, 3]])
    reset = tf.constant([[False, False], [False, True], [False, False]])
    outputs, state = model(ids, model.initial_state(2), tbptt.Controls(reset))
    with np.load(to) as found:
        testing.assert_close(found["saved_model outputs"], outputs, law=10)
        testing.assert_close(found["saved_model state_cell"], state.cell, law=10)
        testing.assert_close(found["litert outputs"], outputs[:, 1:], law=10)
        testing.assert_close(found["litert state_hidden"], state.hidden[1:], law=10)
        testing.assert_close(found["stablehlo outputs"], outputs[:1, 1:], law=10)


@pytest.mark.skipif(
    not importlib.util.find_spec("jax"), reason="needs jax: pip install -e '.[bench]'"
)
def test_stablehlo_runs_by_the_client_of_jax(exports, model):
    """Law 10."""
    import jax

    from tools.bench.pjrt import compile_text

    folder = exports["stablehlo"]
    content = json.loads((folder / "description.json").read_text())["content"]
    given = {"inputs": np.int32([[3]]), "reset": np.array([[True]])}
    with np.load(folder / "parameters.npz") as file:
        given |= {f"parameters/{name}": value for name, value in file.items()}
    with np.load(folder / "initial_state.npz") as file:
        given |= dict(file)
    run = compile_text((folder / "step.mlir").read_text(), jax.devices()[0])
    arguments = [jax.device_put(given[name]) for name in content["arguments"]]
    parts = run.execute_sharded(arguments).disassemble_into_single_device_arrays()
    results = dict(zip(content["results"], (np.asarray(part[0]) for part in parts), strict=True))
    expected, state = model(tf.constant([[3]]), model.initial_state(1))
    testing.assert_close(results["outputs"], expected, law=10)
    testing.assert_close(results["state_cell"], state.cell, law=10)


def test_the_interpreter_of_tensorflow_is_used_where_there_is_no_other(exports, monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    interpreter = lite.open_interpreter(exports["litert"] / "step.tflite")
    assert type(interpreter).__module__.startswith("tensorflow")
    assert set(interpreter.get_signature_runner().get_input_details()) == {
        "inputs", "reset", "state_hidden", "state_cell",
    }  # fmt: skip
