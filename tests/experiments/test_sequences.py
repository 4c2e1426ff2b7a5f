"""The experiments on features: from settings to result, on files like a stranger's."""

import numpy as np
import pytest

import tbptt
from experiments import forecast, music, speech
from tbptt import experiment
from tests.experiments.conftest import run_small


@pytest.mark.parametrize(("horizon", "path"), [(1, False), (500, False), (24, True)])
def test_every_line_of_the_test_part_is_scored_at_any_horizon(tmp_path, horizon, path):
    """Of the 800 lines that are made, by model and persistence alike."""
    settings = dict(horizon=horizon, window_length=600, rows=1, max_windows=1, windows_per_call=1)
    settings |= dict(layers=1, dropout=0.0, input_dropout=0.0)  # what is scored depends on none
    found = run_small(forecast, tmp_path / "run", path=path, **settings)
    assert found["scored"] == (800 - horizon + 1 if path else 800)
    values = forecast.waves(0).values
    scaled = (values - values[:2400].mean(0)) / values[:2400].std(0)
    ahead = np.arange(1, horizon + 1) if path else np.array([horizon])
    origins = np.arange(3200 - ahead[0], 4000 - ahead[-1])
    expected = np.mean((scaled[origins[:, None] + ahead] - scaled[origins, None]) ** 2)
    assert np.isclose(found["persistence"], expected, rtol=1e-5)


def test_lines_after_a_gap_are_scored_by_neither(tmp_path, capsys):
    """A gap in the test part: what a line is forecast from belongs to it, for both."""
    lines = [f"{np.datetime64('2020-01-01') + d},{d % 7}" for d in range(100) if not 88 <= d < 92]
    (tmp_path / "t.csv").write_text("\n".join(["day,x", *lines]))
    found = run_small(
        forecast, tmp_path / "run", data=str(tmp_path / "t.csv"), horizon=3, window_length=4
    )
    # Lines 77 to 95 are days 77 to 87 and 92 to 99, of which the first three have no origin.
    assert found["scored"] == 11 + 5
    day = np.array([d for d in range(77, 100) if not 88 <= d < 95])
    deviation = np.std([d % 7 for d in range(58)])
    expected = np.mean(((day % 7 - (day - 3) % 7) / deviation) ** 2)
    assert np.isclose(found["persistence"], expected, rtol=1e-5)


def test_figure_shows_each_forecast_at_its_line(tmp_path, monkeypatch):
    """A model that knows the line it reads: forecasts are shown where they belong."""
    drawn = []
    monkeypatch.setattr(forecast, "draw", lambda *given: drawn.append(given))
    monkeypatch.setattr(
        forecast,
        "predict",
        lambda model, stream: stream.windows(tbptt.Cursor(), stream.windows_per_epoch)[
            0
        ].targets.reshape(-1, 1)[: stream.row_length],
    )
    lines = [f"{np.datetime64('2020-01-01') + d},{d}" for d in range(100) if not 88 <= d < 92]
    (tmp_path / "t.csv").write_text("\n".join(["day,x", *lines]))
    run_small(forecast, tmp_path / "run", data=str(tmp_path / "t.csv"), horizon=3, window_length=4)
    truth, forecasts, _ = drawn[0]
    there = ~np.isnan(forecasts[:, 0])
    assert there.sum() == 16
    np.testing.assert_allclose(forecasts[there, 0], truth[there], rtol=1e-5)


def test_columns_and_targets_hold_without_data(tmp_path):
    settings = forecast.Settings(columns="late,early", targets="early")
    series = forecast.load(settings)
    assert series.names == ("early", "late")
    np.testing.assert_array_equal(series.values, forecast.waves(0).values)
    assert forecast.load(forecast.Settings(columns="late")).values.shape == (4000, 1)


def test_deltas_are_changes_within_an_utterance():
    segments = tbptt.Segments(
        np.array([[1.0], [2.0], [4.0], [8.0], [9.0], [7.0]]), np.array([4, 6])
    )
    found = speech.with_deltas(segments)
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
    with pytest.raises(experiment.UsageError, match=message):
        run_small(module, files / "run", data=str(files / file), **settings)
    assert not (files / "run").exists()
