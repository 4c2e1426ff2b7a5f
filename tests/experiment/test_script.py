"""A research script of a user's own, in a folder of its own, has all that an experiment has."""

import json
import os
import pathlib
import shutil
import signal
import statistics
import subprocess
import sys
import time

import pytest

import tbptt

SCRIPT = pathlib.Path(__file__).parent / "script.py"
ROOT = pathlib.Path(tbptt.__file__).parent.parent
SMALL = ("--nojit_compile", "--hidden=8", "--windows=150")
TIMES = ("seconds", "steps_per_second")


def start(folder, *arguments):
    """Starts the script as a user does; returns the process."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("TF_CPP_MIN_LOG_LEVEL", None)  # which this process has set
    return subprocess.Popen(
        [sys.executable, "script.py", *arguments],
        cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def end(process):
    """Waits for a process; returns its exit status, standard output and standard error."""
    try:
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    return process.returncode, out, err


def wait_for(condition, process):
    """Waits until the condition holds while the process runs."""
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def figures(folder):
    result = json.loads((folder / "result.json").read_text())
    return {name: value for name, value in result.items() if name not in TIMES}


def whole(checkpoints):
    """Returns the checkpoints in a folder that are not still being written."""
    return [path for path in checkpoints.glob("step-*") if path.name[len("step-") :].isdigit()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder that holds the script alone, and then two seeds in `seeds`, undisturbed."""
    folder = tmp_path_factory.mktemp("own")
    shutil.copy(SCRIPT, folder)
    status, out, err = end(start(folder, *SMALL, "--seeds=2", "--logdir=seeds"))
    assert status == 0, err
    (folder / "out").write_text(out)
    (folder / "err").write_text(err)
    return folder


def test_it_is_short_and_imports_only_the_library():
    lines = SCRIPT.read_text().splitlines()
    assert len(lines) <= 40
    imports = {line.split()[1] for line in lines if line.startswith(("import", "from"))}
    assert imports == {"dataclasses", "numpy", "tbptt"}


def test_it_stands_in_the_guide():
    guide = pathlib.Path(__file__).parents[2] / "docs" / "guide.md"
    assert f"```py\n{SCRIPT.read_text()}```" in guide.read_text("utf-8")


def test_a_run_shows_its_progress_and_writes_its_files(folder):
    run = folder / "seeds" / "seed-0"
    settings = json.loads((run / "settings.json").read_text())
    assert (settings["experiment"], settings["hidden"], settings["rows"]) == ("script", 8, 8)
    assert figures(run)["windows"] == 150
    assert figures(run)["test"] < 8 * 0.6931 - 0.1  # nats: below that of a uniform guess
    assert list((run / "checkpoints").glob("step-*150"))
    (events,) = run.glob("events.out.tfevents.*.v2")
    content = events.read_bytes()
    for tag in (b"loss/train", b"loss/valid", b"result/test", b"settings"):
        assert tag in content
    assert "window 150/150, loss " in (folder / "err").read_text()


def test_seeds_are_summed_up(folder):
    seeds = json.loads((folder / "seeds" / "seeds.json").read_text())
    tests = [figures(folder / "seeds" / f"seed-{seed}")["test"] for seed in (0, 1)]
    assert tests[0] != tests[1]
    assert seeds["seeds"] == 2
    assert seeds["test"] == statistics.mean(tests)
    assert seeds["test_spread"] == statistics.stdev(tests)
    assert json.loads((folder / "out").read_text().splitlines()[-1]) == seeds


def test_help_names_every_flag_and_nothing_else_is_said(folder):
    status, out, err = end(start(folder, "--help"))
    assert status == 1  # as absl ends after --help
    assert err == ""  # TensorFlow is quiet while it is imported
    assert "B: rows, stretches of the text read side by side." in out
    for name in ("text", "[no]jit_compile", "seeds", "logdir", "max_minutes"):
        assert f"--{name}:" in out


def test_killed_it_goes_on_to_the_bit_and_its_folder_is_locked(folder):
    arguments = (*SMALL, "--logdir=killed", "--save_every=1")
    first = start(folder, *arguments)
    checkpoints = folder / "killed" / "checkpoints"
    try:
        wait_for(lambda: whole(checkpoints), first)
        first.send_signal(signal.SIGSTOP)  # it holds the folder, and cannot come to its end
        status, _, err = end(start(folder, *arguments))
        assert status == 1
        owner = f"error: 'killed' is in use by process {first.pid} on "
        assert err.splitlines()[-1].startswith(owner)
    finally:
        first.send_signal(signal.SIGKILL)
        status, _, _ = end(first)
    assert status == -signal.SIGKILL
    assert not (folder / "killed" / "result.json").exists()

    status, _, err = end(start(folder, *arguments))
    assert status == 0, err
    assert "going on from" in err
    assert figures(folder / "killed") == figures(folder / "seeds" / "seed-0")
