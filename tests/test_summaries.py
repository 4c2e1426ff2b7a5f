"""What is in the event file."""

import numpy as np
import tensorflow as tf
from tensorboard.backend.event_processing import event_accumulator

import tbptt
from tbptt import summaries


def test_everything_written_can_be_read(tmp_path):
    writer = tbptt.SummaryWriter(tmp_path)
    writer.table(0, summaries.SETTINGS, {"rows": 3})
    writer.hparams({"rows": 3, "cell": "lstm", "tied": True, "none": None}, {"result/test": "test"})
    for step in (10, 20):
        writer.scalars(step, {summaries.LOSS_TRAIN: step / 10})
    writer.text(20, summaries.SAMPLE, "  def f():\n*x*")
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
    assert np.isclose(summaries.state_rms(state), 12.5**0.5)
