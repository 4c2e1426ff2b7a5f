"""The torture tool sees what differs, and tells a death during a save from another."""

import json
import random
import shutil
import subprocess
import sys

import pytest

from experiments import forecast
from tbptt import checkpoint as ck
from tests.experiments.conftest import run_small
from tools.bench import torture


def test_a_run_is_like_itself_and_every_difference_is_seen(tmp_path):
    whole, ours = tmp_path / "whole", tmp_path / "ours"
    run_small(forecast, whole)
    shutil.copytree(whole, ours)
    assert torture.compare(ours, whole) == []
    result = json.loads((ours / "result.json").read_text())
    (ours / "result.json").write_text(json.dumps(result | {"test": 7.0}))
    next(ours.glob("events*.v2")).unlink()
    path, checkpoint = torture.read_newest(ours)
    name = next(name for name in checkpoint.arrays if name.startswith("loop_state.state"))
    checkpoint.arrays[name] = checkpoint.arrays[name] + 1.0
    shutil.rmtree(path)
    ck.write_checkpoint(path, checkpoint)
    told = torture.compare(ours, whole)
    assert any(line.startswith(f"{name}: 100.0% of the elements differ") for line in told)
    assert "the events of loss/train differ" in told
    assert f"test: 7.0 and {result['test']}" in told
    assert len(told) == len(set(told)) >= 4


PROGRAM = """
import pathlib, sys, time
folder = pathlib.Path(sys.argv[1], "checkpoints")
folder.mkdir(parents=True, exist_ok=True)
(folder / sys.argv[2]).mkdir(exist_ok=True)
if sys.argv[3] == "ends":
    (folder.parent / "result.json").write_text("{}")
else:
    time.sleep(60)
"""


@pytest.mark.parametrize(
    ("saved", "then", "expected"),
    [
        ("step-000000000003.partial", "goes on", True),
        ("step-000000000003", "goes on", False),
        ("step-000000000003", "ends", None),
    ],
)
def test_kills_are_counted_by_what_they_interrupt(tmp_path, monkeypatch, saved, then, expected):
    def start(folder):
        return subprocess.Popen([sys.executable, "-c", PROGRAM, str(folder), saved, then])

    monkeypatch.setattr(torture, "start", start)
    monkeypatch.setattr(random.Random, "uniform", lambda *_: 0.3)
    if expected:  # nothing whole is there yet: the kill comes early
        monkeypatch.setattr(random.Random, "random", lambda _: 0.0)
        monkeypatch.setattr(random.Random, "uniform", lambda *_: 1.0)
    assert torture.kill_once(tmp_path, random.Random(0), in_save=bool(expected)) is expected


def test_a_hang_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(torture, "LIMIT", 0.1)
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    monkeypatch.setattr(torture, "start", lambda folder: subprocess.Popen(command))
    monkeypatch.setattr(random.Random, "random", lambda _: 1.0)
    with pytest.raises(RuntimeError, match="Nothing was saved in"):
        torture.kill_once(tmp_path, random.Random(0), in_save=False)
    with pytest.raises(subprocess.TimeoutExpired):
        torture.finish(tmp_path)
