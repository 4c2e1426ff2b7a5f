"""From the command line to `main`, and several seeds in one run."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
from typing import ClassVar

import pytest

import tbptt
from experiments import run
from tbptt.checkpoint import read_checkpoint

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
        claim = run.Claim(settings, options)
        figure = figures[settings.seed]
        return run.write_result(settings, claim, test=figure, metric="mse", seconds=figure)

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


def test_max_minutes_are_the_process_s_and_not_a_seed_s(tmp_path, monkeypatch):
    now, given = 0.0, []
    monkeypatch.setattr(run.time, "monotonic", lambda: now)

    def main(settings, options):
        nonlocal now
        given.append(options.max_minutes)
        now += 90.0
        claim = run.Claim(settings, options)
        return run.write_result(settings, claim, test=1.0, metric="mse")

    options = run.Options(str(tmp_path / "run"), max_minutes=2.0)
    with pytest.raises(run.UnfinishedError, match=r"2 minutes are over; 2 of 3 seeds are through"):
        run.run_seeds(main, run.Settings(), options, 3)
    assert given == [2.0, 0.5]
    assert len(run.run_seeds(main, run.Settings(), options, 3)) == 3
    assert given == [2.0, 0.5, 2.0]


def test_terminated_run_is_saved_and_ends_by_the_signal(tmp_path):
    arguments = ["--max_epochs=100000", "--nojit_compile", "--hidden=4", "--windows_per_call=5"]
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.forecast", f"--logdir={tmp_path}/run", *arguments],
        stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    said = ""
    with process, process.stderr:
        while "window 5/" not in said:
            line = process.stderr.readline()
            assert line, said
            said += line
        process.terminate()
        said = process.stderr.read()
    assert process.returncode == -signal.SIGTERM
    assert "SIGTERM: the run stops after this call and is saved." in said
    assert "Traceback" not in said
    (folder,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert read_checkpoint(folder).step >= 5


@dataclasses.dataclass(frozen=True)
class Example(run.Settings):
    """Every kind of setting."""

    presets: ClassVar = {"early": {"size": 7}}
    kind: str = run.setting("full", "Kind.", choices=("full", "some", "none"))
    size: int = run.setting(3, "Size.", least=1, used_with={"kind": ("some", "none")})
    share: float = run.setting(0.5, "Share.", most=1.0, below=0.9, used_with={"path": None})
    path: str = run.setting("", "Path.")
    bold: bool = run.setting(False, "Bold.", used_with={"kind": ("some",), "path": None})

    def check_together(self):
        if self.path == self.kind:
            raise ValueError("path and kind are the same.")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(size=0), r"size \(0\) must be at least 1"),
        (dict(size=2.5, kind="some"), r"size \(2.5\) must be of type int"),
        (dict(size=True, kind="some"), r"size \(True\) must be of type int"),
        (dict(size=1 << 63), r"size \(9223372036854775808\) must fit into 64 bits"),
        (dict(share=float("nan")), r"share \(nan\) must be finite"),
        (dict(share=-float("inf")), r"share \(-inf\) must be finite"),
        (dict(share=1.5), r"share \(1.5\) must be at most 1.0"),
        (dict(share=0.9), r"share \(0.9\) must be below 0.9"),
        (dict(kind="all"), r"kind \('all'\) must be one of full, some, none"),
        (
            dict(size=4),
            r"--size has no effect with --kind=full\. Leave it out, or use --kind=some or "
            r"--kind=none\.",
        ),
        (dict(share=0.1), r"--share has no effect without --path\. Leave it out, or use --path\."),
        (
            dict(bold=True),
            r"--bold has no effect with --kind=full and without --path\. Leave it out, or use "
            r"--kind=some or --path\.",
        ),
        (dict(path="full"), "path and kind are the same"),
        (dict(seed=-1), r"seed \(-1\) must be at least 0"),
        (dict(seed=1 << 31), r"seed \(2147483648\) must be at most 2147483647"),
    ],
)
def test_settings_are_refused_alone_and_together(values, message):
    with pytest.raises(ValueError, match=message):
        Example(**values)


@pytest.mark.parametrize(
    "values",
    [
        dict(size=4, kind="some"),
        dict(size=3),
        dict(config="early", size=7),  # the preset says so
        dict(share=0, path="a"),
        dict(bold=True, kind="some"),
        dict(bold=True, path="a"),
        dict(seed=(1 << 31) - 1),
    ],
)
def test_settings_that_have_an_effect_are_accepted(values):
    for name, value in values.items():
        assert getattr(Example(**values), name) == value


def test_a_finished_run_is_told_and_not_run_again(tmp_path, capsys):
    options = run.Options(str(tmp_path / "run"))
    claim = run.Claim(run.Settings(), options)
    result = run.write_result(run.Settings(), claim, test=1.0)
    capsys.readouterr()
    assert run.run_seeds(lambda *_: {}, run.Settings(), options, 1) == [result]
    assert json.loads(capsys.readouterr().out) == result
    with pytest.raises(run.UsageError, match="holds a run with other settings"):
        run.run_seeds(lambda *_: {}, run.Settings(seed=1), options, 1)


def test_two_runs_in_one_folder_refuse_each_other(tmp_path):
    options = run.Options(str(tmp_path / "run"))
    first = run.Claim(run.Settings(), options)
    mine = f"is in use by process {os.getpid()} on "
    with pytest.raises(run.UsageError, match=mine):
        run.Claim(run.Settings(), options)
    with pytest.raises(run.UsageError, match=mine):
        run.Claim(run.Settings(), dataclasses.replace(options, restart=True))
    first.release()
    run.Claim(run.Settings(), options).release()


@pytest.mark.parametrize("replaced", [False, True])
def test_a_folder_that_is_removed_or_replaced_ends_the_run(tmp_path, replaced):
    claim = run.Claim(run.Settings(), run.Options(str(tmp_path / "run")))
    claim.check()
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    if replaced:
        run.Claim(run.Settings(), run.Options(str(tmp_path / "run")))
    with pytest.raises(run.UsageError, match="was removed or replaced while the run wrote to it"):
        claim.check()
