"""The command that exports a run, and its answers to what cannot be done."""

import json

import numpy as np
import pytest

import tbptt
from tbptt.experiment.model_files import PARAMETERS_FILE, write_model_files
from tbptt.layers.running_mean import RunningMean
from tests.commands import run_module

SEED = tbptt.make_seed(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a finished run and an export of it."""
    folder = tmp_path_factory.mktemp("export")
    run = folder / "run"
    run.mkdir()
    core = tbptt.Stack([tbptt.GRU(3, 4, seed=SEED), RunningMean(4)])
    model = tbptt.LanguageModel(5, 3, core, seed=SEED)
    vocabulary = tbptt.Vocabulary("characters", tuple("abcde"))
    write_model_files(run, model, {"vocabulary": vocabulary})
    tbptt.save_parameters(run / PARAMETERS_FILE, model)
    (run / "settings.json").write_text("{}")
    (run / "result.json").write_text(json.dumps({"test": 1.5, "data": "x"}))
    (folder / "text.txt").write_text("abcde" * 10)
    arguments = ["--logdir=run", "--to=here", "--format=stablehlo"]
    ended = run_module("tools.export", arguments, folder)
    assert ended.status == 0, ended.output
    assert "here: one step, by any XLA compiler; 0.0" in ended.output
    content = json.loads((folder / "here" / "description.json").read_text())["content"]
    assert content["result"] == {"test": 1.5}
    return folder


def test_a_check_prints_a_table(folder):
    arguments = ["--logdir=run", "--to=here", "--check", "--text=text.txt", "--steps=30"]
    ended = run_module("tools.export", arguments, folder)
    assert ended.status == 0, ended.output
    table = [line for line in ended.output.splitlines() if line.startswith("|")]
    header, _, first, last = table
    assert header.startswith("| export | steps | outputs differ by |")
    assert first.startswith("| stablehlo | 10 | ")
    name, steps, *figures = [cell.strip() for cell in last.strip("|").split("|")]
    assert (name, steps) == ("stablehlo", "30")
    assert np.isfinite([float(figure) for figure in figures]).all()
    assert figures[-1] == figures[-2]  # the losses


BAD = {
    "nothing": ([], "give --logdir=RUN and --to=FOLDER"),
    "no run": (["--logdir=text.txt", "--to=x"], "error: .*text.txt"),
    "there already": (["--logdir=run", "--to=here"], "'here' is there already, and an export over"),
    "no export": (["--logdir=run", "--to=run", "--check"], "There is no export in 'run'"),
    "both": (
        ["--logdir=run", "--to=here", "--check", "--text=a", "--table=b"],
        "give --text or --table, not both",
    ),
    "no check": (
        ["--logdir=run", "--to=x", "--text=a"],
        "--text, --table and --steps are for --che",
    ),
    "no text": (["--logdir=run", "--to=here", "--check", "--text=no"], "There is no file 'no'"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_done_is_said_in_one_line(folder, case):
    arguments, message = BAD[case]
    ended = run_module("tools.export", arguments, folder)
    assert ended.status == 1
    (line,) = ended.output.strip().splitlines()
    assert line.startswith("error: ")
    assert message.removeprefix("error: .*") in line
    assert not (folder / "x").exists()
