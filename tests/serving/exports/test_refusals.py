"""What exports refuse: damaged or foreign ones, bad inputs, and models that cannot be exported."""

import json
import shutil

import numpy as np
import pytest
import tensorflow as tf

import tbptt
from tbptt.serving.exports import ExportError, description, open_export, write_export
from tests.conftest import make_core
from tests.serving.exports.conftest import SEEDS


def edited(**changes):
    """Changes entries of the description, and its checksum too."""

    def edit(folder):
        path = folder / "description.json"
        content = json.loads(path.read_text())["content"]
        for name, value in changes.items():
            content[name] = value
        digest = description.digest_of(content)
        path.write_text(json.dumps({"content": content, "sha256": digest}))

    return edit


def flipped(name):
    def flip(folder):
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data)

    return flip


DAMAGE = {
    "a changed bit": (
        flipped("step.tflite"),
        r"'step.tflite' in .* is not what was written: its s",
    ),
    "a short file": (
        lambda f: (f / "initial_state.npz").write_bytes(b"PK"),
        r"'initial_state.npz' in .* its size or its checksum differs\. Copy the export again",
    ),
    "a missing file": (lambda f: (f / "step.tflite").unlink(), "has no file 'step.tflite'. Copy"),
    "one file more": (
        lambda f: (f / "notes.txt").write_text("x"),
        "has a file 'notes.txt' that does not belong to the export. Move it",
    ),
    "a cut description": (
        lambda f: (f / "description.json").write_text('{"content": {'),
        r"description.json' cannot be read \(JSONDecodeError",
    ),
    "an edited description": (
        lambda f: (f / "description.json").write_text(
            (f / "description.json").read_text().replace("float32", "float64")
        ),
        "its checksum differs. Copy the export again",
    ),
    "a later version": (edited(version=2), "is of version 2, and this is tbptt for version 1. Use"),
    "something else": (edited(format="x"), "is not the description of an export. Write one with"),
    "another kind": (edited(kind="tape"), "is of kind 'tape', and this tbptt knows saved_model, l"),
    "no interface": (edited(interface={"inputs": []}), "'interface' in it cannot be used"),
    "an absurd batch": (edited(batch=0), "'batch' in it cannot be used"),
    "no batch": (edited(batch=None), "has no batch, which this kind has. Write the export again"),
    "a bad vocabulary": (
        edited(preprocessing={"vocabulary": {"vocabulary": {"kind": "words"}}}),
        "'vocabulary', has no list of tokens",
    ),
    "no description": (
        lambda f: (f / "description.json").unlink(),
        r"no export in .*: it has no description.json. Write one with python -m tools.export",
    ),
    "the folder above": (
        lambda f: [f.rename(f.parent / "moved"), f.mkdir(), (f.parent / "moved").rename(f / "a")],
        "Give one of the exports in it: a.",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_or_foreign_export_is_refused(exports, tmp_path, case):
    damage, message = DAMAGE[case]
    folder = tmp_path / "export"
    shutil.copytree(exports["litert"], folder)
    open_export(folder)
    damage(folder)
    with pytest.raises(ExportError, match=message):
        open_export(folder)


IDS = np.zeros([2, 1], int)
BAD = {
    "no steps": (dict(inputs=np.zeros([0, 1], int)), "have T and B .* of 1 or more"),
    "one axis": (dict(inputs=[1, 2]), r"inputs has shape \[2\], but must be \[T, B\]"),
    "a large id": (
        dict(inputs=[[0], [7]]),
        "the value 7 at step 1 of row 0, but must be an id from",
    ),
    "a negative id": (dict(inputs=[[-1]]), "the value -1 at step 0 of row 0"),
    "no ids": (dict(inputs=[[0.5]]), "has type float64, but must be ids, whole numbers"),
    "text": (dict(inputs=[["a"]]), "must be ids"),
    "another name": (dict(inputs={"x": IDS}), r"inputs are \['x'\], but must be \['inputs'\]"),
    "no state": (dict(state=None), "state is NoneType, but must be arrays by name"),
    "half a state": (
        dict(state={"state_cell": np.zeros([1, 32])}),
        r"\['state_cell'\], but must be",
    ),
    "state of two rows": (
        dict(state={name: np.zeros([2, 32]) for name in ("state_cell", "state_hidden")}),
        r"state_hidden has shape \[2, 32\], but must be \[1, 32\]",
    ),
    "a reset of numbers": (
        dict(reset=[[0], [1]]),
        r"reset is int64\[2, 1\], but must be bool\[2, 1",
    ),
    "a short reset": (
        dict(reset=[[True]]),
        r"reset is bool\[1, 1\], but must be bool\[2, 1\], as t",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_steps_are_answered(exports, case):
    changes, message = BAD[case]
    export = open_export(exports["litert"])
    given = dict(inputs=IDS, state=export.initial_state(1), reset=None) | changes
    with pytest.raises(ValueError, match=message):
        export.step(given["inputs"], given["state"], given["reset"])
    with pytest.raises(ValueError, match=r"rows \(0\) must be at least 1"):
        export.initial_state(0)


def test_numbers_must_be_finite(tmp_path):
    model = tbptt.SequenceModel(make_core("own"), 2, tbptt.squared_error, seed=SEEDS[0])
    export = write_export(
        model, tmp_path / "x", "stablehlo", example=np.zeros([1, 3]), checked_steps=1
    )
    inputs = np.zeros([2, 2, 3])
    inputs[1, 0, 2] = np.nan
    with pytest.raises(
        ValueError, match=r"inputs has the value nan at step 1 of row 0, but must b"
    ):
        export.step(inputs, export.initial_state(2))


def unsaved():
    """A cell whose variable is no attribute of the model."""
    rate = tf.Variable(0.5)
    core = tbptt.Recurrent(
        lambda x, s: (s + rate * x, s + rate * x),
        lambda rows: tf.zeros([rows, 2]),
        output_size=2,
    )
    return tbptt.SequenceModel(core, 2, tbptt.squared_error, seed=SEEDS[0])


def without_kernel():
    """A cell with an operation that LiteRT does not have."""

    def cell(x, s):
        s = s + tf.math.igamma(tf.ones_like(x), tf.abs(x))
        return s, s

    core = tbptt.Recurrent(cell, lambda rows: tf.zeros([rows, 2]), output_size=2)
    return tbptt.SequenceModel(core, 2, tbptt.squared_error, seed=SEEDS[0])


REFUSED = {
    "a variable of nobody": (
        unsaved,
        "saved_model",
        "Keep all variables that a step reads as attr",
    ),
    "an operation without kernel": (
        without_kernel,
        "litert",
        "LiteRT cannot run this model: .* Export a SavedModel or StableHLO",
    ),
    "the same as StableHLO": (
        unsaved,
        "stablehlo",
        "reads a variable that is no attribute of the m",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_models_that_cannot_be_exported(tmp_path, case):
    make, kind, message = REFUSED[case]
    with pytest.raises(ExportError, match=message):
        write_export(make(), tmp_path / "x", kind, example=np.zeros([1, 2]))
    assert not list(tmp_path.iterdir())


def test_arguments_are_checked(tmp_path, model):
    (tmp_path / "there").mkdir()
    with pytest.raises(ExportError, match=r"is there already, and an export overwrites nothing"):
        write_export(model, tmp_path / "there")
    for options, message in (
        (dict(kind="onyx"), r"kind \('onyx'\) must be one of saved_model, litert"),
        (dict(batch=0), r"batch \(0\) must be at least 1"),
        (dict(checked_steps=0), r"checked_steps \(0\)"),
        (dict(preprocessing={"x": object()}), r"preprocessing\['x'\] cannot be written as JSON"),
        (dict(result={"x": float("nan")}), "The description of the export is no JSON"),
        (dict(example=["x"]), r"The example is str32\[1\], but must be numbers \[N"),
    ):
        with pytest.raises(ValueError, match=message):
            write_export(model, tmp_path / "x", **{"kind": "stablehlo", **options})
    scope = tf.distribute.MirroredStrategy(["CPU:0"]).scope
    with scope(), pytest.raises(ExportError, match=r"are written outside of `strategy.scope\(\)`"):
        write_export(model, tmp_path / "x")
    with scope():
        mirrored = tbptt.SequenceModel(make_core("gru"), 2, tbptt.squared_error, seed=SEEDS[0])
    with pytest.raises(ExportError, match="is a variable of several devices, which cannot be exp"):
        write_export(mirrored, tmp_path / "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there"]
