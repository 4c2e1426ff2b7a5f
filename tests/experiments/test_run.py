"""From the command line to `main`, and several seeds in one run."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

import tbptt
from experiments import run, speech

ROOT = pathlib.Path(tbptt.__file__).parent.parent


def command(name, *arguments):
    """Runs an experiment as a user does."""
    kept = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    return subprocess.run(
        [sys.executable, "-m", f"experiments.{name}", *arguments],
        capture_output=True, text=True, cwd=ROOT, timeout=300,
        env={**kept, "PYTHONWARNINGS": "error::RuntimeWarning"},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--rows=0", "error: rows (0) must be at least 1."),
        ("rows=3", "error: 'rows=3' is not a flag"),
    ],
)
def test_a_mistake_on_the_command_line_ends_without_a_traceback(tmp_path, argument, message):
    done = command("language_model", f"--logdir={tmp_path}/run", argument)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert not (tmp_path / "run").exists()


def test_help_names_every_setting():
    text = command("language_model", "--help").stdout
    assert "python -m experiments.language_model" in text
    for name in ("config", "logdir", "rows", "window_length", "jit_compile", "seeds"):
        assert f"--{name}" in text or f"--[no]{name}" in text


def test_seeds_are_runs_of_their_own_and_then_their_mean(tmp_path, capsys):
    figures = {3: 1.0, 4: 3.0}

    def main(settings, options):
        run.claim_logdir(settings, options)
        figure = figures[settings.seed]
        return run.write_result(settings, options, test=figure, metric="mse", seconds=figure)

    options = run.Options(str(tmp_path / "run"))
    run.run_seeds(main, run.Settings(seed=3), options, 2)
    for seed, figure in figures.items():
        folder = tmp_path / "run" / f"seed-{seed}"
        assert json.loads((folder / run.RESULT_FILE).read_text())["test"] == figure
        assert json.loads((folder / run.SETTINGS_FILE).read_text())["seed"] == seed
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary == json.loads((tmp_path / "run" / run.SEEDS_FILE).read_text())
    assert summary.pop("test_spread") == pytest.approx(2**0.5)
    assert summary.pop("seconds_spread") == pytest.approx(2**0.5)
    assert summary == {"test": 2.0, "metric": "mse", "seconds": 2.0, "seeds": 2}


def test_settings_below_their_bound_are_refused():
    with pytest.raises(ValueError, match=r"rows \(0\) must be at least 1"):
        speech.Settings(rows=0)
