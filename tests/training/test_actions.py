"""What happens between the calls, and when."""

import io
import os
import sys

import numpy as np
import pytest
import tensorflow as tf

import tbptt
from tbptt.training.actions import clock
from tests.training.test_loop import Features, make_stream, make_trainer, nan_in_features, run


def test_calls_end_where_actions_are_due():
    calls, fours, sixes = [], [], []
    actions = [
        tbptt.EveryCall(lambda report: calls.append(report.step)),
        tbptt.Every(4, lambda report: fours.append(report.step)),
        tbptt.Every(6, lambda report: sixes.append(report.step), at_end=False),
    ]
    run(make_trainer(), make_stream(), 14, 3, actions=actions)
    assert calls == [3, 4, 6, 8, 11, 12, 14]
    assert fours == [4, 8, 12, 14]
    assert sixes == [6, 12]


def test_keep_best_restores_the_parameters_of_the_lowest_figure():
    module = tbptt.Dense(1, 1, seed=tbptt.make_seed(0))
    best = tbptt.KeepBest(module)
    figures = [3.0, 1.0, 2.0, 1.0]
    taken = []
    for step, value in enumerate(figures):
        module.w.assign([[float(step)]])
        taken.append(best.offer(value, step))
    assert taken == [True, True, False, False]
    best.apply()
    assert module.w.numpy() == 1.0
    assert (best.figure, best.step) == (1.0, 1)


def test_keep_best_never_prefers_nan():
    best = tbptt.KeepBest(tbptt.Dense(1, 1, seed=tbptt.make_seed(0)))
    assert not best.offer(float("nan"), 1)
    assert best.offer(5.0, 2)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_a_bar_on_a_terminal(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    progress = tbptt.Progress(tokens_per_window=8)
    run(make_trainer(), make_stream(), 6, 2, actions=[tbptt.EveryCall(progress)])
    assert "6/6" in screen.getvalue()
    assert "tokens/s" in screen.getvalue()
    assert progress.tokens_per_second > 0


def test_progress_is_log_lines_elsewhere(caplog, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    caplog.set_level("INFO", logger="absl")
    progress = tbptt.Progress(tokens_per_window=8, log_seconds=0.0)
    run(make_trainer(), make_stream(), 6, 2, actions=[tbptt.EveryCall(progress)])
    lines = [record.getMessage() for record in caplog.records if "window" in record.getMessage()]
    assert len(lines) == 3
    assert lines[0].startswith("window 2/6, loss ")
    assert lines[-1].endswith("0:00 left")


def test_progress_shows_the_mean_loss_since_it_was_last_shown(caplog, monkeypatch):
    """Of six calls two are shown: the first, and the last with those between."""
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    caplog.set_level("INFO", logger="absl")
    progress, losses = tbptt.Progress(tokens_per_window=8, log_seconds=1e6), []
    monkeypatch.setattr(progress, "_next_log", 0.0)
    log = tbptt.EveryCall(lambda report: losses.append(report.metrics.loss))
    run(make_trainer(), make_stream(), 6, 1, actions=[tbptt.EveryCall(progress), log])
    lines = [record.getMessage() for record in caplog.records if "window" in record.getMessage()]
    shown = [float(line.split("loss ")[1].split(",")[0]) for line in lines]
    np.testing.assert_allclose(shown, [losses[0], np.mean(losses[1:])], atol=1e-4)


def test_progress_tells_a_skipped_window_at_once(caplog, monkeypatch):
    """With its number, and what was not finite, though no line is due."""
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    caplog.set_level("INFO", logger="absl")
    progress = tbptt.Progress(tokens_per_window=8, log_seconds=1e6)
    stream = nan_in_features(make_stream(), 3, 6, 7)
    run(make_trainer(model=Features()), stream, 10, 2, actions=[tbptt.EveryCall(progress)])
    lines = [record.getMessage() for record in caplog.records if "skipped" in record.getMessage()]
    assert lines == [
        "window 4 was skipped: its loss is not finite",
        "2 of the windows 7 to 8 were skipped, first window 7: its loss is not finite",
    ]


def test_clock():
    assert [clock(s) for s in (0, 75, 3723)] == ["0:00", "1:15", "1:02:03"]


def test_profile_writes_a_trace(tmp_path):
    profile = tbptt.Profile(str(tmp_path), 2, 4)
    run(make_trainer(), make_stream(), 8, 2, actions=[tbptt.EveryCall(profile)])
    found = [name for _, _, names in os.walk(tmp_path) for name in names]
    assert any(name.endswith(".xplane.pb") for name in found)


@pytest.mark.parametrize(("first", "last"), [(-1, 3), (3, 3)])
def test_profile_refuses_an_empty_range(first, last):
    with pytest.raises(ValueError, match="window of the profile"):
        tbptt.Profile("somewhere", first, last)


def test_a_period_of_no_windows_is_refused():
    with pytest.raises(ValueError, match=r"windows between actions \(0\) must be at least 1"):
        tbptt.Every(0, lambda report: None)


def test_no_windows_are_refused():
    with pytest.raises(ValueError, match=r"windows \(0\) must be at least 1"):
        run(make_trainer(), make_stream(), 0, 2)


def test_actions_see_the_state():
    states = []
    run(
        make_trainer(),
        make_stream(),
        2,
        2,
        actions=[tbptt.EveryCall(lambda r: states.append(r.state))],
    )
    assert isinstance(states[0], tbptt.LSTMState)
    assert isinstance(states[0].hidden, tf.Tensor)
