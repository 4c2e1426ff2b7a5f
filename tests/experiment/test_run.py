"""From the command line to `main`, and several seeds in one run."""

import contextlib
import dataclasses
import inspect
import json
import os
import pathlib
import resource
import signal
import subprocess
import sys
import time
from typing import ClassVar

import pytest
from absl import flags

import tbptt
from tbptt.checkpoint import read_checkpoint
from tbptt.experiment import (
    RESULT_FILE,
    SEEDS_FILE,
    SETTINGS_FILE,
    Claim,
    Options,
    Settings,
    UnfinishedError,
    UsageError,
    run_seeds,
    setting,
    settings,
    write_file,
    write_result,
)
from tbptt.experiment import flags as command_flags
from tests.commands import run_module

ROOT = pathlib.Path(tbptt.__file__).parent.parent


def command(name, *arguments):
    """Runs an experiment as a user does."""
    kept = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    return subprocess.run(
        [sys.executable, "-m", f"experiments.{name}", *arguments],
        capture_output=True, text=True, cwd=ROOT, timeout=300,
        env={**kept, "PYTHONWARNINGS": "error::RuntimeWarning"},
    )  # fmt: skip


def test_a_mistake_on_the_command_line_ends_without_a_traceback(tmp_path):
    """As a user's shell shows it; the others are in test_bad_runs."""
    done = command("language_model", f"--logdir={tmp_path}/run", "--rows=0")
    assert done.returncode == 1
    assert (done.stdout, done.stderr) == ("", "error: rows (0) must be at least 1.\n")
    assert not (tmp_path / "run").exists()


def test_help_names_every_setting(tmp_path):
    text = run_module("experiments.language_model", ["--help"], tmp_path).output
    assert "python -m experiments.language_model" in text
    for name in ("config", "logdir", "rows", "window_length", "jit_compile", "seeds"):
        assert f"--{name}" in text or f"--[no]{name}" in text


def test_seeds_are_runs_of_their_own_and_then_their_mean(tmp_path, capsys):
    figures = {3: 1.0, 4: 3.0}

    def main(settings, options):
        figure = figures[settings.seed]
        with Claim(settings, options) as claim:
            return write_result(settings, claim, test=figure, metric="mse", seconds=figure)

    options = Options(str(tmp_path / "run"))
    run_seeds(main, Settings(seed=3), options, 2)
    for seed, figure in figures.items():
        folder = tmp_path / "run" / f"seed-{seed}"
        assert json.loads((folder / RESULT_FILE).read_text())["test"] == figure
        assert json.loads((folder / SETTINGS_FILE).read_text())["seed"] == seed
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary == json.loads((tmp_path / "run" / SEEDS_FILE).read_text())
    assert summary.pop("test_spread") == pytest.approx(2**0.5)
    assert summary.pop("seconds_spread") == pytest.approx(2**0.5)
    assert summary == {"test": 2.0, "metric": "mse", "seconds": 2.0, "seeds": 2}


def write_one(settings, options):
    """A `main` that does nothing but finish."""
    with Claim(settings, options) as claim:
        return write_result(settings, claim, test=1.0)


def test_max_minutes_count_from_the_start_of_the_process(tmp_path, monkeypatch):
    """Of a command line; of a call, from when its options were made. All seeds share them."""
    values = flags.FlagValues()
    command_flags.define_flags(Settings, values)
    values(["name", "--max_minutes=5"])
    _, options = command_flags.settings_from_flags(Settings, values)
    assert options.began == pytest.approx(settings.process_began(), abs=0.1)
    code = (
        f"import os, pathlib, time\n{inspect.getsource(settings.process_began)}\n"
        "time.sleep(0.5)\nprint(process_began())"
    )
    before = time.monotonic()  # a clock of the system, the same for all processes
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    after = time.monotonic()
    began = float(process.communicate()[0])
    assert before - 0.1 < began < after + 0.1

    assert Options(max_minutes=5.0).seconds_left() == pytest.approx(300, abs=1)
    assert Options().seconds_left() == float("inf")

    now, left = 0.0, []
    monkeypatch.setattr(settings.time, "monotonic", lambda: now)

    def main(settings, options):
        nonlocal now
        left.append(options.seconds_left())
        now += 90.0
        return write_one(settings, options)

    options = Options(str(tmp_path / "run"), max_minutes=2.0, began=0.0)
    with pytest.raises(UnfinishedError, match=r"2 minutes are over; 2 of 3 seeds are through"):
        run_seeds(main, Settings(), options, 3)
    assert left == [120.0, 30.0]


def test_an_interrupt_during_the_imports_ends_without_a_traceback():
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.music", "--help"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        # A shell starts what it puts into the background with the signal ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    maps = pathlib.Path(f"/proc/{process.pid}/maps")
    while "tensorflow" not in maps.read_text():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert said == ""


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
class Example(Settings):
    """Every kind of setting."""

    presets: ClassVar = {"early": {"size": 7}}
    kind: str = setting("full", "Kind.", choices=("full", "some", "none"))
    size: int = setting(3, "Size.", least=1, used_with={"kind": ("some", "none")})
    share: float = setting(0.5, "Share.", most=1.0, below=0.9, used_with={"path": None})
    path: str = setting("", "Path.")
    bold: bool = setting(False, "Bold.", used_with={"kind": ("some",), "path": None})

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
    options = Options(str(tmp_path / "run"))
    result = write_one(Settings(), options)
    capsys.readouterr()
    assert run_seeds(write_one, Settings(), options, 1) == [result]
    assert json.loads(capsys.readouterr().out) == result
    with pytest.raises(UsageError, match="holds a run with other settings"):
        run_seeds(write_one, Settings(seed=1), options, 1)


def test_a_finished_run_of_other_data_is_not_taken_for_this_one(tmp_path):
    options = Options(str(tmp_path / "run"))
    with Claim(Settings(), options, data="ab") as claim:
        write_result(Settings(), claim, test=1.0)
    with pytest.raises(UsageError, match=r"is finished\. Use --restart"):
        Claim(Settings(), options, data="ab").__enter__()
    with pytest.raises(UsageError, match=r"is finished, but its data have changed since\. Use"):
        Claim(Settings(), options, data="cd").__enter__()
    with Claim(Settings(), dataclasses.replace(options, restart=True), data="cd"):
        assert (tmp_path / "run.1" / "result.json").exists()


def test_two_runs_in_one_folder_refuse_each_other(tmp_path):
    options = Options(str(tmp_path / "run"))
    mine = f"is in use by process {os.getpid()} on "
    with Claim(Settings(), options):
        with pytest.raises(UsageError, match=mine):
            Claim(Settings(), options).__enter__()
        with pytest.raises(UsageError, match=mine):
            Claim(Settings(), dataclasses.replace(options, restart=True)).__enter__()
    with Claim(Settings(), options):
        pass


def test_after_an_exception_the_folder_is_free_again(tmp_path):
    """In the same process, though the traceback still holds everything that the run had."""
    claim = Claim(Settings(), Options(str(tmp_path / "run")))
    with pytest.raises(KeyError) as kept, claim:
        raise KeyError("a mistake in a notebook")
    with Claim(Settings(), Options(str(tmp_path / "run"))):
        assert kept.tb is not None


@pytest.mark.parametrize("replaced", [False, True])
def test_a_folder_that_is_removed_or_replaced_ends_the_run(tmp_path, replaced):
    options = Options(str(tmp_path / "run"))
    with Claim(Settings(), options) as claim:
        claim.check()
        (tmp_path / "run").rename(tmp_path / "elsewhere")
        with Claim(Settings(), options) if replaced else contextlib.nullcontext():
            message = "was removed or replaced while the run wrote to it"
            with pytest.raises(UsageError, match=message):
                claim.check()


def files_of(folder):
    return sorted(path.name for path in folder.iterdir())


def test_restart_begins_once_and_is_then_gone_on_with(tmp_path):
    """Killed or out of time, the same command with --restart goes on; finished, it begins anew."""
    options = Options(str(tmp_path / "run"))
    again = dataclasses.replace(options, restart=True)
    with Claim(Settings(), options) as claim:
        (claim.folder / "trained").write_text("without --restart")
    for content in ("", "restarted once", "restarted once, and gone on with"):
        with Claim(Settings(), again) as claim:
            there = claim.folder / "trained"
            assert (there.read_text() if there.exists() else "") == content
            there.write_text("restarted once" + ", and gone on with" * bool(content))
    assert files_of(tmp_path) == ["run", "run.1"]
    with Claim(Settings(), options) as claim:  # without --restart it goes on too
        assert (claim.folder / "trained").exists()
        write_result(Settings(), claim, test=1.0)
    with Claim(Settings(), again) as claim:
        assert not (claim.folder / "trained").exists()
    assert (tmp_path / "run.2" / "result.json").exists()


@pytest.mark.parametrize("name", [SETTINGS_FILE, RESULT_FILE, SEEDS_FILE])
def test_a_small_file_is_whole_or_as_it_was(tmp_path, name):
    """On a full disk, and where the folder cannot be written."""
    write_file(tmp_path / name, "before")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(UsageError, match=f"{name}' cannot be written: File too large"):
            write_file(tmp_path / name, "x" * 200)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert files_of(tmp_path) == [name]
    assert (tmp_path / name).read_text() == "before\n"
    with pytest.raises(UsageError, match="cannot be written: Not a directory"):
        write_file(tmp_path / name / "below", "")


def test_restart_of_several_seeds_is_of_all_of_them_and_once(tmp_path):
    options = Options(str(tmp_path / "run"))
    for seed in (0, 1):
        write_one(
            Settings(seed=seed),
            Options(str(tmp_path / "run" / f"seed-{seed}")),
        )
    again = dataclasses.replace(options, restart=True)
    made = []

    def main(settings, options):
        made.append(settings.seed)
        result = write_one(settings, options)
        if len(made) == 1:
            raise UnfinishedError("after the first seed")
        return result

    with pytest.raises(UnfinishedError):
        run_seeds(main, Settings(), again, 2)
    assert files_of(tmp_path) == ["run", "run.1"]
    results = run_seeds(main, Settings(), again, 2)
    assert len(results) == 2
    assert files_of(tmp_path) == ["run", "run.1"]
    assert (tmp_path / "run" / SEEDS_FILE).exists()
    run_seeds(main, Settings(), again, 2)  # it was finished
    assert files_of(tmp_path) == ["run", "run.1", "run.2"]


def test_a_launcher_does_not_begin_again_what_it_has_finished(tmp_path, monkeypatch):
    """It starts all workers again where one dies, if only after the result is written."""
    again = Options(str(tmp_path / "run"), restart=True)
    monkeypatch.setenv("TBPTT_LAUNCH", "one")
    write_one(Settings(), again)
    with pytest.raises(UsageError, match=r"is finished\. Use --restart"):
        Claim(Settings(), again).__enter__()
    monkeypatch.setenv("TBPTT_LAUNCH", "another")
    write_one(Settings(), again)
    assert files_of(tmp_path) == ["run", "run.1"]
