"""The experiments on features: from settings to result, on files like a stranger's."""

import numpy as np
import pytest

import tbptt
from experiments import forecast, memory, music, run, speech
from tests.experiments.conftest import experiment


@pytest.mark.parametrize(
    ("module", "file", "settings"),
    [
        (music, "music.npz", dict(keys=20, window_length=4)),
        (speech, "speech.npz", dict(window_length=4, stride=2, burn_in=1, deltas=True)),
        (forecast, "table.csv", dict(window_length=4, targets="rain", horizon=2)),
        (forecast, "table.csv", dict(window_length=4, horizon=2, path=True, teacher_forcing=0.5)),
        (memory, None, dict(cuts="2,4/2f", steps=50)),
    ],
)
def test_experiment_on_a_file(files, module, file, settings):
    data = {"data": str(files / file)} if file else {}
    found = experiment(module, files / "run", **data, **settings)
    figures = [value for value in found.values() if isinstance(value, float)]
    assert figures
    assert np.isfinite(figures).all()


def test_deltas_are_changes_within_an_utterance():
    pieces = tbptt.Pieces(np.array([[1.0], [2.0], [4.0], [8.0], [9.0], [7.0]]), np.array([4, 6]))
    found = speech.with_deltas(pieces)
    assert found.values.T.tolist() == [
        [1, 2, 4, 8, 9, 7],
        [0, 1, 2, 4, 0, -2],
        [0, 1, 3, 7, 0, -2],
    ]


@pytest.mark.parametrize(
    ("module", "file", "settings", "message"),
    [
        (music, "no.npz", {}, "There is no file"),
        (music, "speech.npz", {}, "lacks valid, valid_len"),
        (speech, "music.npz", {}, "lacks test_y, train_y"),
        (speech, "speech.npz", dict(score="mean"), r"score \('mean'\) must be one of"),
        (speech, "speech.npz", dict(rows=0), r"rows \(0\) must be at least 1"),
        (forecast, "table.csv", dict(targets="snow"), "There is no column 'snow'"),
        (forecast, "table.csv", dict(train=30), "of 27, but each must have some"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(files, module, file, settings, message):
    with pytest.raises(run.UsageError, match=message):
        experiment(module, files / "run", data=str(files / file), **settings)
    assert not (files / "run").exists()
