"""Every check of `tbptt.testing` finds the fault it is for, and names the law."""

import numpy as np
import pytest
import tensorflow as tf

import tbptt
from tbptt import optimizers, testing
from tbptt.distribution import open_replicas
from tbptt.types import Cursor

SEED = tbptt.make_seed(3)
INPUTS = tf.random.stateless_normal([4, 3, 2], SEED)
TOKENS = np.random.default_rng(0).integers(0, 5, 61)


class Core(tf.Module):
    """A right core, with faults that can be switched on."""

    def __init__(self, fault="", backend="scan"):
        super().__init__()
        self.fault, self.backend, self.output_size = fault, backend, 2
        self.w = tf.Variable([[0.5, 0.2], [-0.3, 0.4]])
        self.seen = tf.Variable(tf.zeros([2]), trainable=False)

    def initial_state(self, rows):
        return tf.zeros([rows, 2])

    def __call__(self, inputs, state, controls=tbptt.Controls(), *, training=False, seed=None):
        def cell(x, h):
            h = tf.tanh(x @ self.w + h)
            return h, h

        if self.fault == "ignores resets":
            controls = tbptt.Controls()
        if self.fault == "multiplies at a reset" and controls.reset is not None:
            kept = 1.0 - tf.cast(controls.reset, tf.float32)[..., None]
            return tbptt.unroll(lambda x, h: cell(x[0], x[1] * h), (inputs, kept), state)
        if self.fault == "remembers":
            state = state + self.seen
            self.seen.assign(state[0])
        if self.fault == "mixes rows":
            inputs = inputs - tf.reduce_mean(inputs, axis=1, keepdims=True)
        if self.fault == "knows places":
            inputs = inputs + tf.range(3.0)[:, None]
        if self.fault == "has no gradient":
            inputs, state = tf.stop_gradient(inputs) * 0.0, tf.stop_gradient(state) * 0.0
        return tbptt.unroll(cell, inputs, state, controls, backend=self.backend)


@pytest.mark.parametrize(
    ("fault", "law"),
    [
        ("ignores resets", "Law 3 .*row 2, which resets at step 0"),
        ("multiplies at a reset", "Law 3 .*row 2, which resets at step 0.* nan instead of"),
        ("remembers", "Law 1 .*windows of 1 and 3 steps against one of 4"),
        ("mixes rows", "Law (3|4) .*row"),
        ("knows places", r"Law 4 .*rows in the order \[2, 0, 1\]"),
        ("has no gradient", "Law 2 .*no gradient at all"),
    ],
)
def test_faults_of_a_core_are_found(fault, law):
    with pytest.raises(testing.LawError, match=law):
        testing.check_core(Core(fault), INPUTS)


def test_a_row_that_sees_another_is_found():
    with pytest.raises(testing.LawError, match=r"Law 4 .*row 1 gives depends on the inputs of"):
        testing.check_rows(Core("mixes rows"), INPUTS)


def test_a_gradient_across_windows_is_found():
    class Leaks(Core):
        def __call__(self, inputs, state, controls=tbptt.Controls(), **options):
            state = state + 0.1 * getattr(self, "last", 0.0)
            outputs, state = super().__call__(inputs, state, controls, **options)
            self.last = outputs[-1]
            return outputs, state

    with pytest.raises(testing.LawError, match=r"Law 2 .*respect to the inputs of the first"):
        testing.check_truncation(Leaks(), INPUTS)


def test_a_right_core_passes_and_another_backend_is_the_same():
    testing.check_core(Core(), INPUTS)
    testing.check_same_core(Core(), Core(backend="reference"), INPUTS, jit_compile=True)
    other = Core()
    other.w.assign_add([[0.0, 0.0], [0.0, 1e-3]])
    with pytest.raises(testing.LawError, match=r"Law 5 .*outputs, final state and gradients, 0,"):
        testing.check_same_core(other, Core(), INPUTS)


class Model(tf.Module):
    """A right model, with faults that can be switched on."""

    def __init__(self, fault=""):
        super().__init__()
        self.fault = fault
        core = tbptt.LSTM(3, 4, seed=SEED)
        self.model = tbptt.LanguageModel(5, 3, core, seed=SEED, dropout_rate=0.3)
        self.scored = tf.Variable(0.0, trainable=False)

    def initial_state(self, rows):
        return self.model.initial_state(rows)

    def __call__(self, inputs, state, controls=tbptt.Controls(), *, training=False, seed=None):
        return self.model(inputs, state, controls, training=training, seed=seed)

    def loss(self, window, state, *, training, seed):
        if self.fault == "ignores controls":
            window = window._replace(controls=tbptt.Controls())
        if self.fault == "ignores the state":
            state = self.initial_state(3)
        if self.fault == "drops in evaluation":
            training, seed = True, tf.random.uniform([2], 0, 99, tf.int32)
        if self.fault == "counts":
            self.scored.assign_add(1.0)
        result, state = self.model.loss(window, state, training=training, seed=seed)
        if self.fault == "mixes rows":
            result = result._replace(loss=result.loss + result.loss[:, :1])
        if self.fault == "means":
            result = result._replace(loss=tf.reduce_mean(result.loss))
        if self.fault == "a metric a row":
            result = result._replace(metrics={"row": tf.reduce_mean(result.loss, axis=0)})
        if self.fault == "a state for all rows":
            state = tf.nest.map_structure(lambda x: x[:1], state)
        if self.fault == "a tuple":
            return tuple(result), state
        return result, state


@pytest.mark.parametrize(
    ("fault", "law"),
    [
        ("ignores controls", "Law 3 .*loss of row 2, which resets at step 2"),
        ("ignores the state", "Law 1 .*loss of windows of 2 and 2 steps"),
        ("drops in evaluation", "Law 9 .*a window scored twice"),
        ("counts", "Law 9 .*the variables after scoring"),
        ("mixes rows", "Law 4 .*loss of rows"),
        ("means", r"Law 0 .*loss has shape \[\] instead of \[T, B\] = \[4, 3\]"),
        ("a metric a row", r"Law 0 .*the metric 'row' has shape \[\[3\]\]"),
        ("a state for all rows", "Law 0 .*the state after a window"),
        ("a tuple", r"Law 0 .*must return \(WindowLoss, state\), and returned a tuple"),
    ],
)
def test_faults_of_a_model_are_found(fault, law):
    ids = tf.reshape(tf.constant(TOKENS[:15], tf.int32), [5, 3])
    with pytest.raises(testing.LawError, match=law):
        testing.check_model(Model(fault), tbptt.Window(ids[:-1], ids[1:]))


class Readout(tbptt.FullSoftmax):
    """A right readout, with faults that can be switched on."""

    def __init__(self, fault):
        super().__init__(2, 5, seed=SEED)
        self.fault = fault

    def logits(self, hidden):
        if self.fault == "looks at other rows" and len(hidden.shape) > 1:
            hidden = hidden - tf.reduce_mean(hidden, axis=-2, keepdims=True)
        return super().logits(hidden)

    def loss(self, hidden, targets, *, training=False, seed=None):
        if self.fault == "another temperature":
            hidden = 1.001 * hidden
        if self.fault == "no gradient of a part":
            hidden = tf.stop_gradient(hidden)
        loss = super().loss(hidden, targets, training=training, seed=seed)
        return loss / 0.0 if training and self.fault == "infinite in training" else loss


@pytest.mark.parametrize(
    ("fault", "law"),
    [
        ("looks at other rows", "Law 4 .*the logits of one hidden state"),
        ("another temperature", "Law 5 .*against the cross entropy of the logits"),
        ("no gradient of a part", "Law 5 .*loss and gradients, .*, 1/0, differs"),
        ("infinite in training", "Law 0 .*in training .*not finite"),
    ],
)
def test_faults_of_a_readout_are_found(fault, law):
    with pytest.raises(testing.LawError, match=law):
        testing.check_readout(Readout(fault), INPUTS, tf.constant([[0, 4, 2]] * 4))


class Stream(tbptt.ContiguousStream):
    """A right stream, with faults that can be switched on."""

    def __init__(self, fault):
        super().__init__(TOKENS, rows=3, window_length=4, vocabulary_size=5)
        self.fault, self.calls = fault, 0
        self.epochs_alike = fault != "admits that epochs differ"

    def windows(self, cursor, count, rows=slice(None)):
        window, following = super().windows(cursor, count, rows)
        self.calls += 1
        if self.fault == "remembers calls" and self.calls > 3:
            window = window._replace(inputs=window.inputs + 1)
        if self.fault == "another cursor":
            following = Cursor(following.epoch, following.index + 1)
        if self.fault == "jumps":
            window = window._replace(offset=2 * window.offset)
        if self.fault == "never starts":
            window = window._replace(start=np.zeros_like(window.start), offset=0 * window.offset)
        if self.fault == "batch first":
            window = window._replace(inputs=np.swapaxes(window.inputs, 1, 2))
        if self.fault == "rows in another order" and len(window.start[0]) < 3:
            window = window._replace(inputs=window.inputs[:, :, ::-1] + 1)
        if self.fault in ("epochs differ", "admits that epochs differ"):
            window = window._replace(inputs=window.inputs + cursor.epoch)
            if count > 1:
                window.inputs[self.windows_per_epoch : 2 * self.windows_per_epoch] += 1
                window.inputs[2 * self.windows_per_epoch :] += 2
        return window, following


@pytest.mark.parametrize(
    ("fault", "law"),
    [
        ("remembers calls", "Law 0 .*read alone, against the same among 11.*inputs"),
        ("another cursor", r"Law 0 .*end at Cursor\(epoch=2, index=2\), not Cursor"),
        ("jumps", "Law 11 .*row 0 of window 1 is at 8, but window 0 left it elsewhere"),
        ("never starts", "Law 11 .*row 0 of window 1"),
        ("batch first", r"Law 0 .*inputs have shape \[11, 3, 4\] for \[K, T, B\] = \[11, 4, 3\]"),
        ("rows in another order", "Law 4 .*rows 0 to 1 alone"),
        ("epochs differ", "Law 0 .*the second epoch of a stream with epochs_alike"),
    ],
)
def test_faults_of_a_stream_are_found(fault, law):
    with pytest.raises(testing.LawError, match=law):
        testing.check_stream(Stream(fault))


def test_a_stream_that_admits_that_epochs_differ_passes():
    testing.check_stream(Stream("admits that epochs differ"))


class Trainer(tbptt.Trainer):
    """A trainer whose update depends on something that no checkpoint holds."""

    def __init__(self, fault, replicas=None):
        model = tbptt.LanguageModel(5, 3, tbptt.LSTM(3, 4, seed=SEED), seed=SEED)
        rate = 0.2 if fault == "replicas train faster" and replicas.strategy else 0.1
        super().__init__(model, optimizers.sgd(rate), jit_compile=False, replicas=replicas)
        self.fault, self.calls = fault, 0

    def __call__(self, loop_state, chunk):
        self.calls += 1
        if self.fault == "a mark at every call":
            self.model.trainable_variables[0].assign_add(
                1e-6 * tf.ones_like(self.model.trainable_variables[0])
            )
        if self.fault == "a mark at the first call" and self.calls == 1:
            self.model.trainable_variables[0].assign_add(
                1e-6 * tf.ones_like(self.model.trainable_variables[0])
            )
        return super().__call__(loop_state, chunk)

    @property
    def traces(self):
        return super().traces + (self.fault == "traced again")


@pytest.mark.parametrize(
    ("fault", "law"),
    [
        ("a mark at every call", "Law 6 .*in calls of 2, against one call"),
        ("traced again", r"Law 12 .*traced \(2, 2, 1\) times"),
    ],
)
def test_faults_of_training_are_found(fault, law):
    with pytest.raises(testing.LawError, match=law):
        testing.check_training(lambda: Trainer(fault), Stream(""), windows=3)


def test_an_evaluation_that_trains_is_found():
    trainers = []

    def make_trainer():
        trainers.append(Trainer(""))
        loss = trainers[-1].model.loss

        def trains(window, state, *, training, seed):
            result, state = loss(window, state, training=training, seed=seed)
            if not training:
                trainers[-1].model.embedding.table.assign_add(tf.ones([5, 3]))
            return result, state

        trainers[-1].model.loss = trains
        return trainers[-1]

    with pytest.raises(testing.LawError, match=r"Law 9 .*two evaluations in a row"):
        testing.check_training(make_trainer, Stream(""), windows=3)


def test_a_state_outside_the_checkpoint_is_found():
    made = []

    def make_trainer():
        made.append(Trainer(""))
        if len(made) == 2:  # the one that resumes
            made[-1].fault = "a mark at the first call"
        return made[-1]

    with pytest.raises(testing.LawError, match=r"Law 7 .*saved and resumed after 1"):
        testing.check_training(make_trainer, Stream(""), windows=3)


def test_replicas_that_train_otherwise_are_found():
    tokens = TOKENS[:41]
    stream = tbptt.ContiguousStream(tokens, rows=2, window_length=4, vocabulary_size=5)

    def make_trainer(replicas):
        with replicas.scope():
            return Trainer("replicas train faster", replicas)

    with pytest.raises(testing.LawError, match=r"Law 8 .*2 replicas against one device, "):
        testing.check_replicas(make_trainer, stream, open_replicas("mirrored"), windows=3)


def test_messages_show_the_largest_difference():
    a, b = np.float32([[1.0, 2.0], [3.0, 4.0]]), np.float32([[1.0, 2.5], [3.0, 4.1]])
    message = r"Law 5 \(.*\): x, w, differs at \[0, 1\]: 2.0 instead of 2.5, and at 1 of 4 more"
    with pytest.raises(testing.LawError, match=message):
        testing.assert_close({"w": a}, {"w": b}, law=5, what="x")
    with pytest.raises(testing.LawError, match=r"The bits must be the same"):
        testing.assert_same_bits({"w": a}, {"w": b}, law=6, what="x")
    with pytest.raises(testing.LawError, match=r"has shape \(2,\) instead of \(2, 2\)"):
        testing.assert_close(a[0], b)
    with pytest.raises(testing.LawError, match="has type float32 instead of float64"):
        testing.assert_same_bits(a, a.astype(np.float64))
    with pytest.raises(testing.LawError, match="has 1 parts instead of 2"):
        testing.assert_close([a], [a, b])
    testing.assert_close(np.float32([np.nan, 1.0]), np.float32([np.nan, 1.0 + 1e-6]))
    with pytest.raises(testing.LawError, match=r"differs at \[0\]: nan instead of 1.0"):
        testing.assert_close(np.float32([np.nan]), np.float32([1.0]))
