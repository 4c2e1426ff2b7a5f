"""What the inspector says of checkpoints, intact and not."""

import os
import subprocess
import sys

import numpy as np
import pytest

from tbptt import checkpoint as ck
from tools import inspect_checkpoint as inspector


@pytest.fixture
def run(tmp_path):
    """A run's folder with two checkpoints."""
    for step in (3, 7):
        arrays = {"model.w": np.full([2, 3], step, np.float32), "step": np.array(step)}
        ck.write_checkpoint(
            tmp_path / "checkpoints" / f"step-{step:012}",
            ck.Checkpoint(step, arrays, {"cursor": [1, step]}),
        )
    return tmp_path


def test_a_run_in_lines_and_a_table(run):
    paths = inspector.found_at(run)
    assert [path.name for path in paths] == ["step-000000000003", "step-000000000007"]
    line, intact = inspector.line_of(paths[1])
    assert intact
    assert line.startswith(
        "step-000000000007: intact, window 7, epoch 1, its window 7; 0.0 MB, 0 m"
    )
    path, checkpoint = inspector.read_newest(run)
    assert path == paths[1]
    table = inspector.describe(checkpoint)
    assert "cursor: [1, 7]" in table
    assert "| model.w | float32 | 2 x 3 | 17.15 | 7 | 7 |" in table
    assert inspector.found_at(paths[0]) == [paths[0]]


def test_damage_is_told(run):
    (run / "checkpoints" / "step-000000000007" / "arrays.npz").write_bytes(b"")
    line, intact = inspector.line_of(inspector.found_at(run)[1])
    assert not intact
    assert "DAMAGED" in line
    assert "has 0 bytes" in line
    assert inspector.read_newest(run)[1].step == 3
    (run / "checkpoints" / "step-000000000003" / "manifest.json").unlink()
    with pytest.raises(ck.CheckpointError, match=r"has 0 bytes"):
        inspector.read_newest(run)


def test_differences():
    arrays = {"a": np.array([1.0, 2.0]), "b": np.zeros([2]), "c": np.zeros([1])}
    one = ck.Checkpoint(3, arrays, {"cursor": [0, 3]})
    assert inspector.difference(one, one) == []
    arrays = {"a": np.array([1.0, 2.5]), "b": np.zeros([3]), "d": np.zeros([1])}
    assert inspector.difference(one, ck.Checkpoint(4, arrays, {"cursor": [0, 4]})) == [
        "step: 3 and 4",
        "cursor: [0, 3] and [0, 4]",
        "a: 50.0% of the elements differ, by 0.5 at most",
        "b: float64 [2] and float64 [3]",
        "c: only in the first",
        "d: only in the second",
    ]


def test_nothing_but_the_answer_is_printed(tmp_path):
    """TensorFlow is quiet while it is imported."""
    quiet = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    command = [sys.executable, "-m", "tools.inspect_checkpoint", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=quiet, timeout=100)
    assert done.returncode == 1
    assert done.stderr.startswith("error: There is no checkpoint in")
    assert len(done.stderr.splitlines()) == 1


def test_nothing_there(tmp_path):
    with pytest.raises(ValueError, match="There is no checkpoint in"):
        inspector.found_at(tmp_path)
