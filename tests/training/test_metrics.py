"""Metrics of a model's own: per step, per window and with a weight of their own, by hand."""

import numpy as np
import pytest
import tensorflow as tf

import tbptt
from tbptt import optimizers
from tbptt.distribution import open_replicas

ROWS, STEPS, WINDOWS = 4, 3, 5
SEED = tbptt.make_seed(1)


class Measured(tf.Module):
    """A model with three kinds of metrics, none of which depends on its parameters."""

    def __init__(self, extra=()):
        super().__init__()
        self.model = tbptt.LanguageModel(7, 3, tbptt.LSTM(3, 4, seed=SEED), seed=SEED)
        self.extra = extra

    def initial_state(self, rows):
        return self.model.initial_state(rows)

    def loss(self, window, state, *, training, seed):
        result, state = self.model.loss(window, state, training=training, seed=seed)
        ids = tf.cast(window.targets, tf.float32)
        metrics = {
            "target": ids,
            "largest": tf.reduce_max(ids[0]),
            "threes": (tf.reduce_sum(tf.cast(ids == 3, tf.float32)), tf.reduce_sum(ids)),
        }
        return result._replace(metrics=metrics | dict.fromkeys(self.extra, ids)), state


def stream():
    tokens = np.random.default_rng(0).integers(0, 7, [ROWS * STEPS * WINDOWS - 2])
    return tbptt.ContiguousStream(
        tokens, rows=ROWS, window_length=STEPS, vocabulary_size=7, tail="pad"
    )


def by_hand(replicas):
    windows, _ = stream().windows(tbptt.Cursor(), WINDOWS)
    ids, weight = windows.targets.astype(np.float64), windows.weight
    first = ids[:, 0].reshape(WINDOWS, replicas, -1)
    return {
        "target": (ids * weight).sum() / weight.sum(),
        "largest": first.max(axis=-1).mean(),
        "threes": (ids == 3).sum() / ids.sum(),
    }


@pytest.mark.parametrize(("count", "jit"), [(1, True), (2, False)])
def test_metrics_are_added_in_the_loop_over_replicas_and_in_evaluation(count, jit):
    """Every replica's windows count for a metric of windows."""
    replicas = open_replicas("mirrored" if count == 2 else "one")
    with replicas.scope():
        model = Measured()
        trainer = tbptt.Trainer(model, optimizers.sgd(0.1), replicas=replicas, jit_compile=jit)
    feed = tbptt.open_feed(stream(), WINDOWS, replicas=replicas)
    run_state = tbptt.RunState(trainer.initial_loop_state(ROWS))
    chunk, _ = feed.take(run_state.cursor, WINDOWS)
    _, metrics = trainer(run_state.loop_state, chunk)
    found = metrics.read().means
    assert 1.0 < found.pop("loss") < 3.0
    assert found == pytest.approx(by_hand(count), rel=1e-6)
    evaluation = tbptt.Evaluator(model, stream(), replicas=replicas, jit_compile=jit)()
    assert evaluation.metrics == pytest.approx(by_hand(count), rel=1e-6)


@pytest.mark.parametrize("name", ["loss", "penalty"])
def test_names_that_are_taken_are_refused(name):
    trainer = tbptt.Trainer(Measured(extra=[name]), optimizers.sgd(0.1), jit_compile=False)
    chunk, _ = tbptt.open_feed(stream(), 1).take(tbptt.Cursor(), 1)
    with pytest.raises(ValueError, match=f"'{name}' is a metric of its own"):
        trainer(trainer.initial_loop_state(ROWS), chunk)
