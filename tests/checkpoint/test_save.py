"""When checkpoints are written, what is told when they cannot be, and how signals end a run."""

import errno
import os
import signal
import types
import zipfile

import numpy as np
import pytest
from absl import logging

from tbptt.checkpoint import Checkpoint, Checkpoints
from tbptt.checkpoint import save as saving
from tbptt.checkpoint.save import Save
from tbptt.training.signals import StopOnSignal


def report(step, windows=1, last_step=100):
    return types.SimpleNamespace(
        step=step,
        metrics=types.SimpleNamespace(windows=windows),
        finished=step >= last_step,
        run_state=step,
    )


def take(step):
    return Checkpoint(step, {"x": np.full([3], step)}, {})


def saved(checkpoints, save, step, **options):
    """Whether a checkpoint is written after the call that ends at `step`."""
    before = checkpoints.steps()
    save(report(step, **options))
    checkpoints.wait()
    return checkpoints.steps() != before


def test_by_windows_at_the_end_of_the_call_that_crosses(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=9)
    save = Save(checkpoints, take, windows=10)
    for step in (3, 9, 10, 14, 29, 30, 31, 100):
        saved(checkpoints, save, step, windows=3)
    assert checkpoints.steps() == [10, 29, 30, 100]


def test_by_minutes_of_a_clock_that_does_not_jump(tmp_path, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(saving.time, "monotonic", lambda: now)
    monkeypatch.setattr(saving.time, "time", lambda: pytest.fail("a wall clock may jump"))
    checkpoints = Checkpoints(tmp_path)
    save = Save(checkpoints, take, minutes=2.0)
    for step, seconds, expected in ((1, 60, False), (2, 61, True), (3, 119, False), (4, 1, True)):
        now += seconds
        assert saved(checkpoints, save, step) == expected


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS], ids=["full", "read-only"])
def test_a_full_disk_is_told_and_the_run_goes_on(tmp_path, monkeypatch, number):
    told = []
    monkeypatch.setattr(logging, "error", lambda text, *a: told.append(text % a))
    checkpoints = Checkpoints(tmp_path)
    save = Save(checkpoints, take, windows=1)
    assert saved(checkpoints, save, 1)

    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "open", refuse)
        assert not saved(checkpoints, save, 2)
        assert not told  # nobody waits for the disk
        assert not saved(checkpoints, save, 3)
    assert len(told) == 1
    assert os.strerror(number) in told[0]
    assert "The run goes on. The last one is of window 1." in told[0]
    assert saved(checkpoints, save, 4)
    save.close()
    assert checkpoints.newest().step == 4


def test_a_mistake_in_the_writer_is_raised_at_the_next_call(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    save = Save(checkpoints, lambda step: Checkpoint(step, {}, {"x": object()}), windows=1)
    save(report(1))
    checkpoints.wait()
    with pytest.raises(TypeError, match="not JSON serializable"):
        save(report(2))


def test_what_was_taken_is_what_is_written(tmp_path):
    """The thread writes a copy: training goes on over the original."""
    values = np.zeros([3])
    checkpoints = Checkpoints(tmp_path)
    save = Save(checkpoints, lambda step: Checkpoint(step, {"x": values.copy()}, {}), windows=1)
    save(report(1))
    values += 1.0
    save.close()
    assert checkpoints.newest().arrays["x"].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("number", StopOnSignal.SIGNALS)
def test_signal_asks_for_an_end_and_the_next_one_ends_at_once(number):
    heard = []
    earlier = {each: signal.getsignal(each) for each in StopOnSignal.SIGNALS}
    signal.signal(number, lambda *_: heard.append("earlier"))
    try:
        with StopOnSignal() as stop:
            assert not stop()
            signal.raise_signal(number)
            assert stop()
            assert stop.received == number
            assert heard == ["earlier"]
            assert all(signal.getsignal(each) == signal.SIG_DFL for each in StopOnSignal.SIGNALS)
        signal.raise_signal(number)  # the earlier handler is back
        assert heard == ["earlier", "earlier"]
    finally:
        for each, handler in earlier.items():
            signal.signal(each, handler)


def test_no_signal_no_end():
    with StopOnSignal() as stop:
        pass
    stop.exit()
