"""The experiments on features: from flags to result, without data and on files like a stranger's.

Each in a process of its own, as a user runs it: flags are the process's.
"""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import tbptt

ROOT = pathlib.Path(tbptt.__file__).parent.parent
SMALL = ["--rows=2", "--hidden=4", "--max_windows=3", "--windows_per_call=2", "--nojit_compile"]


def command(name, *arguments):
    return subprocess.run(
        [sys.executable, "-m", f"experiments.{name}", *arguments],
        capture_output=True, text=True, cwd=ROOT, timeout=300,
        env={**os.environ, "PYTHONWARNINGS": "error::RuntimeWarning"},
    )  # fmt: skip


def result(tmp_path, name, *arguments):
    done = command(name, f"--logdir={tmp_path}/run", *SMALL, *arguments)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "run" / "result.json").read_text())
    assert json.loads(done.stdout.splitlines()[-1]) == found
    return found


def pack(frames):
    return np.packbits(frames.astype(np.uint8), axis=1)


@pytest.fixture
def files(tmp_path):
    """Small files in the layouts of music, speech and a table, of other widths than usual."""
    rng = np.random.default_rng(0)
    lengths = {"train": [9, 5, 12], "valid": [7, 4], "test": [6, 3]}
    music = {f"{part}_len": np.array(each) for part, each in lengths.items()}
    music |= {part: pack(rng.random([sum(each), 20]) < 0.2) for part, each in lengths.items()}
    np.savez(tmp_path / "music.npz", **music)
    speech = {}
    for part, count in (("train", 12), ("test", 6)):
        speech[f"{part}_len"] = rng.integers(2, 9, count)
        speech[part] = rng.normal(size=[speech[f"{part}_len"].sum(), 5])
        speech[f"{part}_y"] = np.arange(count) % 3 + 10  # labels need not begin at 0
    np.savez(tmp_path / "speech.npz", **speech)
    rows = [f"2020-01-{d:02},{d % 7},{'' if d == 9 else d % 5}" for d in range(1, 29) if d != 15]
    (tmp_path / "table.csv").write_text("\n".join(["day,wind,rain", *rows]))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("music", ["--data={}/music.npz", "--keys=20", "--window_length=4"]),
        ("speech", ["--data={}/speech.npz", "--window_length=4", "--stride=2", "--burn_in=1"]),
        ("forecast", ["--data={}/table.csv", "--window_length=4", "--targets=rain", "--horizon=2"]),
        ("memory", ["--cuts=2,4/2f", "--steps=50"]),
    ],
)
def test_experiment_on_a_file(files, name, arguments):
    found = result(files, name, *(argument.format(files) for argument in arguments))
    figures = [value for value in found.values() if isinstance(value, float)]
    assert figures
    assert np.isfinite(figures).all()


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("music", ["--data={}/speech.npz"], "lacks valid, valid_len"),
        ("forecast", ["--data={}/table.csv", "--targets=snow"], "There is no column 'snow'"),
    ],
)
def test_mistakes_are_told_in_one_line(files, name, arguments, message):
    arguments = [argument.format(files) for argument in arguments]
    done = command(name, f"--logdir={files}/run", *SMALL, *arguments)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (files / "run").exists()
