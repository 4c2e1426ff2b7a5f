"""Laws 7 and 8 over worker processes: experiments through the launcher, over loopback."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from experiments import music
from tbptt.experiment import RESULT_FILE
from tests.experiments.conftest import run_small
from tools.inspect_checkpoint import difference, read_newest

SETTINGS = dict(
    max_windows=40, windows_per_call=4, rows=4, hidden=8, eval_every=20, jit_compile=False,
    dropout=0.0, input_dropout=0.0, recurrent_dropout=0.0,  # each replica would draw its own
)  # fmt: skip


def launched(logdir, *flags):
    """Two workers; what they say goes to a file beside the folder."""
    arguments = [
        f"--{name}={value}" if not isinstance(value, bool) else f"--{'' if value else 'no'}{name}"
        for name, value in SETTINGS.items()
    ]
    command = [sys.executable, "-m", "tools.launch", "--workers=2", *flags, "--"]
    command += [sys.executable, "-m", "experiments.music", *arguments]
    command += [f"--logdir={logdir}", "--save_every=4"]
    with open(f"{logdir}.log", "w") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)


def worker(logdir, index):
    """The process number of a worker."""
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if f"--logdir={logdir}" in (path / "cmdline").read_text() and (
                f'"index": {index}' in (path / "environ").read_text()
            ):
                return int(path.name)
        except OSError:
            continue
    raise AssertionError(f"no worker {index}")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of an undisturbed run of two workers."""
    logdir = tmp_path_factory.mktemp("workers") / "whole"
    assert launched(logdir).wait(120) == 0, pathlib.Path(f"{logdir}.log").read_text()
    return logdir


@pytest.fixture(scope="module")
def one(whole):
    """The folder of the same run on one device."""
    logdir = whole.with_name("one")
    run_small(music, logdir, options=dict(save_every="20", keep_checkpoints=9), **SETTINGS)
    return logdir


def test_two_workers_follow_one_device(whole, one):
    """Law 8, and one file of each kind: only the chief writes."""
    assert_follows(whole, one)
    assert len(list(whole.glob("events*.v2"))) == 1
    log = pathlib.Path(f"{whole}.log").read_text()
    assert log.count("window 40: valid nats_per_frame") == 1


def wait_for_a_checkpoint(logdir, process):
    deadline = time.monotonic() + 100
    while not list(logdir.glob("checkpoints/step-*[0-9]")):
        assert process.poll() is None, pathlib.Path(f"{logdir}.log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def assert_follows(logdir, whole):
    """Within tolerance: the same rows at the same place with the same state, the same figures."""
    ours, theirs = (read_newest(folder)[1] for folder in (logdir, whole))
    assert ours.facts["cursor"] == theirs.facts["cursor"]
    assert set(ours.arrays) == set(theirs.arrays)
    for name, array in theirs.arrays.items():
        if name.startswith("loop_state."):
            np.testing.assert_allclose(ours.arrays[name], array, rtol=1e-3, atol=1e-4)
    results = [json.loads((folder / RESULT_FILE).read_text()) for folder in (logdir, whole)]
    for name in ("valid", "test"):
        assert results[0][name] == pytest.approx(results[1][name], rel=1e-4)


def test_one_signalled_worker_stops_all_and_one_device_goes_on(whole):
    """All stop at the same window, and save; law 7 from two workers to one."""
    logdir = whole.with_name("signalled")
    process = launched(logdir)
    wait_for_a_checkpoint(logdir, process)
    os.kill(worker(logdir, 1), signal.SIGTERM)
    process.wait(60)
    log = pathlib.Path(f"{logdir}.log").read_text()
    _, checkpoint = read_newest(logdir)
    assert 4 <= checkpoint.step < 40
    told = f"The run is saved at window {checkpoint.step} of 40, because another worker was told to"
    assert told in log.replace("\n[0] ", " "), log
    assert not (logdir / RESULT_FILE).exists()
    run_small(music, logdir, **SETTINGS)
    assert_follows(logdir, whole)


def test_workers_go_on_from_one_device(whole, one):
    """Law 7 from one to two workers: from window 20 of a run on one device."""
    logdir = whole.with_name("taken-up")
    shutil.copytree(one, logdir)
    (logdir / RESULT_FILE).unlink()
    for path in logdir.glob("checkpoints/step-*"):
        if int(path.name.rpartition("-")[2]) > 20:
            shutil.rmtree(path)
    assert launched(logdir).wait(120) == 0
    assert "going on from 20," in pathlib.Path(f"{logdir}.log").read_text()
    assert_follows(logdir, whole)


def test_a_killed_worker_ends_all_and_restarted_they_come_to_the_same_bits(whole):
    logdir = whole.with_name("killed")
    process = launched(logdir, "--restart=1")
    wait_for_a_checkpoint(logdir, process)
    other = worker(logdir, 0)
    os.kill(worker(logdir, 1), 9)
    began = time.monotonic()
    while pathlib.Path(f"/proc/{other}").exists():
        assert time.monotonic() < began + 30
        time.sleep(0.05)
    assert process.wait(120) == 0, pathlib.Path(f"{logdir}.log").read_text()
    log = pathlib.Path(f"{logdir}.log").read_text()
    assert "error: another worker is gone" in log
    assert "Worker 1 ended with status -9." in log
    assert "going on from" in log
    assert difference(read_newest(logdir)[1], read_newest(whole)[1]) == []
    results = [json.loads((folder / RESULT_FILE).read_text()) for folder in (logdir, whole)]
    for name in ("valid", "test", "windows", "settings"):
        assert results[0][name] == results[1][name]
