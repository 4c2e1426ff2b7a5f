"""What is in the event file."""

import resource
import time

import numpy as np
import tensorflow as tf
from absl import logging
from tensorboard.backend.event_processing import event_accumulator, plugin_event_accumulator

import tbptt
from tbptt.summaries import tags
from tbptt.summaries.actions import state_rms


def test_everything_written_can_be_read(tmp_path):
    writer = tbptt.SummaryWriter(tmp_path)
    writer.table(0, tags.SETTINGS, {"rows": 3})
    writer.hparams({"rows": 3, "cell": "lstm", "tied": True, "none": None}, {"result/test": "test"})
    for step in (10, 20):
        writer.scalars(step, {tags.LOSS_TRAIN: step / 10})
    writer.text(20, tags.SAMPLE, "  def f():\n*x*")
    writer.histograms(20, "state", {"0/hidden": tf.ones([2, 2])})
    writer.close()
    events = event_accumulator.EventAccumulator(str(tmp_path)).Reload()
    scalars = [
        (e.step, tf.make_ndarray(e.tensor_proto).item()) for e in events.Tensors("loss/train")
    ]
    assert scalars == [(10, 1.0), (20, 2.0)]
    (sample,) = events.Tensors("sample")
    assert tf.make_ndarray(sample.tensor_proto).item().decode() == "      def f():\n    *x*"
    assert {"settings", "state/0/hidden"} <= set(events.Tags()["tensors"])
    metadata = events.SummaryMetadata("_hparams_/session_start_info")
    assert metadata.plugin_data.plugin_name == "hparams"


def test_state_rms():
    state = tbptt.LSTMState(tf.fill([2, 3], 3.0), tf.fill([2, 3], 4.0))
    assert np.isclose(state_rms(state), 12.5**0.5)
    for factor in (1e30, 1e-30):
        scaled = tf.nest.map_structure(lambda part, f=factor: part * f, state)
        assert np.isclose(state_rms(scaled) / factor, 12.5**0.5)
    assert state_rms(tf.zeros([2])) == 0.0


def test_a_run_that_goes_on_shows_one_unbroken_line(tmp_path):
    """What was written after the checkpoint, and is written again, is shown once."""
    for first, last in ((0, 5), (3, 7), (6, 8)):
        writer = tbptt.SummaryWriter(tmp_path, first_step=first)
        for step in range(first + 1, last + 1):
            writer.scalars(step, {tags.LOSS_TRAIN: first + step / 10})
        writer.close()
        time.sleep(1.01)  # event files are read in the order of the seconds in their names
    events = plugin_event_accumulator.EventAccumulator(str(tmp_path)).Reload()
    found = [(e.step, tf.make_ndarray(e.tensor_proto).item()) for e in events.Tensors("loss/train")]
    expected = [(1, 0.1), (2, 0.2), (3, 0.3), (4, 3.4), (5, 3.5), (6, 3.6), (7, 6.7), (8, 6.8)]
    assert [step for step, _ in found] == [step for step, _ in expected]
    np.testing.assert_allclose([v for _, v in found], [v for _, v in expected], rtol=1e-6)


def test_a_full_disk_is_told_and_a_new_file_is_begun(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(logging, "error", lambda text, *a: told.append(text % a))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = tbptt.SummaryWriter(tmp_path)
    writer.scalars(1, {tags.LOSS_TRAIN: 1.0})
    writer.flush()
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        for step in (2, 3):
            writer.scalars(step, {tags.LOSS_TRAIN: 2.0})
            writer.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(told) == 1
    assert f"events could not be written to {tmp_path}: " in told[0]
    assert "File too large. The run goes on." in told[0]
    writer.scalars(4, {tags.LOSS_TRAIN: 3.0})  # lost: the file is begun by flush
    writer.flush()
    writer.scalars(5, {tags.LOSS_TRAIN: 4.0})
    writer.close()
    events = event_accumulator.EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in events.Tensors("loss/train")] == [1, 5]


def test_a_folder_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(logging, "error", lambda text, *a: told.append(text % a))
    (tmp_path / "file").write_text("")
    writer = tbptt.SummaryWriter(tmp_path / "file" / "run")
    writer.scalars(1, {tags.LOSS_TRAIN: 1.0})
    writer.close()
    assert len(told) == 1
