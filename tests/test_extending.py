"""Parts of a user's own, as a user would write them: cell, core, model, readout and stream.

Each has at most 30 lines. Each passes its laws from `tbptt.testing`, trains, is evaluated, resumes
to the bit and trains on two replicas.
"""

import inspect
import json

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing import event_accumulator

import tbptt
from tbptt import experiment, optimizers, testing
from tbptt.distribution import open_replicas
from tbptt.streams.rows import RowStream, Span

SEEDS = tbptt.split_seed(tbptt.make_seed(7), 4)


class MinimalGatedUnit(tf.Module):
    """A cell with one gate (Zhou, Wu, Zhang & Zhou, 2016, Minimal gated unit for RNNs).

    f = sigmoid([x, h] @ w_f),   c = tanh([x, f * h] @ w_c),   h <- (1 - f) * h + f * c
    """

    def __init__(self, input_size, hidden_size, seed):
        super().__init__()
        shape = [input_size + hidden_size, hidden_size]
        seeds = tbptt.split_seed(seed, 2)
        self.w_f = tf.Variable(0.5 * tf.random.stateless_normal(shape, seeds[0]))
        self.w_c = tf.Variable(0.5 * tf.random.stateless_normal(shape, seeds[1]))

    def __call__(self, inputs, h):
        f = tf.sigmoid(tf.concat([inputs, h], 1) @ self.w_f)
        c = tf.tanh(tf.concat([inputs, f * h], 1) @ self.w_c)
        h = (1.0 - f) * h + f * c
        return h, h


class IndRNN(tf.Module):
    """A core whose units see only themselves (Li, Li, Cook, Zhu & Gao, 2018, IndRNN).

    The products with the inputs of all steps are one matrix product before the loop.
    """

    def __init__(self, input_size, hidden_size, seed, backend="auto"):
        super().__init__()
        self.output_size, self._backend = hidden_size, backend
        self.inputs = tbptt.Dense(input_size, hidden_size, seed=seed)
        self.u = tf.Variable(tf.linspace(0.2, 0.9, hidden_size))

    def initial_state(self, rows):
        return {"h": tf.zeros([rows, self.output_size])}

    def __call__(self, inputs, state, controls=tbptt.Controls(), *, training=False, seed=None):
        def cell(x, state):
            h = tf.tanh(x + self.u * state["h"])
            return h, {"h": h}

        start = self.initial_state(inputs.shape[1])
        x = self.inputs(inputs)
        return tbptt.unroll(cell, x, state, controls, initial_state=start, backend=self._backend)


class Forecaster(tf.Module):
    """A model with a loss of its own, Huber's, and two metrics of its own."""

    def __init__(self, core, seed):
        super().__init__()
        self.core, self.readout = core, tbptt.Dense(core.output_size, 1, seed=seed)

    def initial_state(self, rows):
        return self.core.initial_state(rows)

    def __call__(self, inputs, state, controls=tbptt.Controls(), *, training=False, seed=None):
        hidden, state = self.core(inputs, state, controls, training=training, seed=seed)
        return self.readout(hidden), state

    def loss(self, window, state, *, training, seed):
        outputs, state = self(window.inputs, state, window.controls, training=training, seed=seed)
        error = tf.abs(outputs - window.targets)[..., 0]
        loss = tf.where(error < 0.5, 0.5 * error**2, 0.5 * (error - 0.25))
        rising = tf.cast(window.targets > window.inputs, tf.float32)[..., 0]
        metrics = {
            "hits": tf.cast(error < 0.2, tf.float32),  # [T, B]: a mean over steps
            "error_where_rising": (tf.reduce_sum(error * rising), tf.reduce_sum(rising)),
        }
        return tbptt.WindowLoss(loss, metrics), state


class MixtureOfSoftmaxes(tf.Module):
    """A readout whose distribution is a mixture (Yang, Dai, Salakhutdinov & Cohen, 2018)."""

    def __init__(self, hidden_size, vocabulary_size, seed, count=2):
        super().__init__()
        self.hidden_size, self.vocabulary_size, self._count = hidden_size, vocabulary_size, count
        seeds = tbptt.split_seed(seed, 2)
        self.prior = tbptt.Dense(hidden_size, count, seed=seeds[0])
        self.parts = tbptt.Dense(hidden_size, count * vocabulary_size, seed=seeds[1])

    def logits(self, hidden):
        parts = tf.reshape(self.parts(hidden[None])[0], [*hidden.shape[:-1], self._count, -1])
        prior = tf.nn.log_softmax(self.prior(hidden[None])[0])[..., None]
        return tf.reduce_logsumexp(prior + tf.nn.log_softmax(parts), axis=-2)

    def loss(self, hidden, targets, *, training, seed):
        return tbptt.cross_entropy(self.logits(hidden), targets)


class Waves(RowStream):
    """A stream that computes what it gives: row b is a sine of its own period."""

    def __init__(self, rows, steps, window_length):
        truncation = tbptt.Truncation(window_length)
        super().__init__(rows=rows, row_length=steps, truncation=truncation)

    def read(self, epoch, first, count, rows):
        periods = np.arange(7, 7 + self.rows)[rows, None]
        steps = np.arange(first, first + count + 1)
        values = np.sin(2 * np.pi * steps / periods).astype(np.float32)[..., None]
        weight = np.tile((steps[:-1] < self.row_length).astype(np.float32), [len(values), 1])
        return Span(values[:, :-1], values[:, 1:], weight=weight)


PARTS = (MinimalGatedUnit, IndRNN, Forecaster, MixtureOfSoftmaxes, Waves)
INPUTS = tf.random.stateless_normal([6, 3, 2], SEEDS[3])
TOKENS = np.random.default_rng(0).integers(0, 5, 4 * 6 * 5 + 1)


def make_core(kind, input_size=1, backend="auto"):
    if kind == "core":
        return IndRNN(input_size, 6, SEEDS[0], backend=backend)
    cell = MinimalGatedUnit(input_size, 6, SEEDS[0])
    return tbptt.Recurrent(cell, lambda rows: tf.zeros([rows, 6]), output_size=6, backend=backend)


def make_model(kind):
    if kind == "readout":
        core = tbptt.LSTM(3, 6, seed=SEEDS[0])
        readout = MixtureOfSoftmaxes(6, 5, SEEDS[1])
        return tbptt.LanguageModel(5, 3, core, seed=SEEDS[2], readout=readout)
    return Forecaster(make_core(kind), SEEDS[1])


def make_stream(kind):
    if kind == "readout":
        return tbptt.ContiguousStream(TOKENS, rows=4, window_length=6, vocabulary_size=5)
    return Waves(rows=4, steps=27, window_length=6)


def trainer_maker(kind):
    def make_trainer(replicas=None):
        with (replicas or tbptt.distribution.Replicas()).scope():
            how = dict(replicas=replicas, jit_compile=False)
            return tbptt.Trainer(make_model(kind), optimizers.adam(0.01), **how)

    return make_trainer


every_model = pytest.mark.parametrize("kind", ["cell", "core", "readout"])


def test_each_part_has_at_most_30_lines():
    assert max(len(inspect.getsource(part).splitlines()) for part in PARTS) <= 30


@pytest.mark.parametrize("kind", ["cell", "core"])
def test_cell_and_core_keep_the_laws(kind):
    core = make_core(kind, input_size=2)
    testing.check_core(core, INPUTS)
    reference = make_core(kind, input_size=2, backend="reference")
    for jit_compile in (False, True):
        testing.check_same_core(core, reference, INPUTS, jit_compile=jit_compile)


@every_model
def test_model_keeps_the_laws(kind):
    testing.check_model(make_model(kind), make_stream(kind).windows(tbptt.Cursor(), 1)[0].at(0))


def test_readout_keeps_the_laws():
    targets = tf.constant([[0, 4, 2]] * 6)
    testing.check_readout(MixtureOfSoftmaxes(2, 5, SEEDS[1]), INPUTS, targets, jit_compile=True)


def test_stream_keeps_the_laws():
    testing.check_stream(make_stream("cell"))


@every_model
def test_training_keeps_the_laws(kind):
    """Calls of any length, resume to the bit, evaluation, one trace."""
    testing.check_training(trainer_maker(kind), make_stream(kind))


@every_model
def test_two_replicas_follow_one_device(kind):
    testing.check_replicas(trainer_maker(kind), make_stream(kind), open_replicas("mirrored"))


def test_a_run_learns_and_reports_the_metrics(tmp_path):
    """In `result.json` and in TensorBoard, beside the loss, by the names the model gave them."""
    stream = make_stream("cell")
    settings, options = experiment.Settings(), experiment.Options(str(tmp_path / "run"))
    result = experiment.train_and_test(
        settings, options, trainer_maker("cell")(), stream, stream, stream, windows=60
    )  # fmt: skip
    written = json.loads((tmp_path / "run" / "result.json").read_text())
    assert written["test_hits"] == result["test_hits"]
    assert written["test"] < 0.03 < tbptt.Evaluator(make_model("cell"), stream)().loss
    assert 0.7 < written["test_hits"] <= 1.0
    assert 0.0 < written["test_error_where_rising"] < 0.3
    events = event_accumulator.EventAccumulator(str(tmp_path / "run")).Reload()
    names = ("loss", "hits", "error_where_rising")
    tags = {f"{name}/{part}" for name in names for part in ("train", "valid")}
    assert tags <= {*events.Tags()["scalars"], *events.Tags()["tensors"]}
