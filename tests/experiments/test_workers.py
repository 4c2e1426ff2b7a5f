"""Laws 7 and 8 over worker processes: experiments through the launcher, over loopback."""

import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest

from experiments import music, run
from tests.experiments.conftest import experiment
from tools.inspect_checkpoint import difference, read_newest

SETTINGS = dict(
    max_windows=40, windows_per_call=4, rows=4, hidden=8, eval_every=20, jit_compile=False, keys=12,
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


def test_two_workers_follow_one_device(whole, tmp_path):
    """Law 8, and one file of each kind: only the chief writes."""
    result = json.loads((whole / "result.json").read_text())
    one = experiment(music, tmp_path / "one", **SETTINGS)
    for name in ("valid", "test"):
        assert result[name] == pytest.approx(one[name], rel=1e-4)
    assert len(list(whole.glob("events*.v2"))) == 1
    log = pathlib.Path(f"{whole}.log").read_text()
    assert log.count("window 40: valid nats_per_frame") == 1
    # Law 7 over another number of replicas: the rows of two workers go on with one.
    _, checkpoint = read_newest(whole)
    assert checkpoint.arrays["carry.position"].shape == (4,)
    np.testing.assert_allclose(
        checkpoint.arrays["carry.state.0.hidden"],
        read_newest(tmp_path / "one")[1].arrays["carry.state.0.hidden"],
        rtol=1e-3,
        atol=1e-4,
    )


def test_a_killed_worker_ends_all_and_restarted_they_come_to_the_same_bits(whole):
    logdir = whole.with_name("killed")
    process = launched(logdir, "--restart=1")
    deadline = time.monotonic() + 100
    while not list(logdir.glob("checkpoints/step-*[0-9]")) and time.monotonic() < deadline:
        time.sleep(0.01)
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
    results = [json.loads((folder / run.RESULT_FILE).read_text()) for folder in (logdir, whole)]
    for name in ("valid", "test", "windows", "settings"):
        assert results[0][name] == results[1][name]
