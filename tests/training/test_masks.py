"""Gradients under masks: a NaN that reaches nothing that counts changes no gradient (law 3).

For every loss, core, backend, model and kind of stream, NaN is put at each place of weight 0 in
turn. What counts is decided here by walking back through the window, step by step.
"""

import numpy as np
import pytest
import tensorflow as tf

import tbptt
from tbptt import losses, optimizers
from tbptt.testing import assert_close, assert_same_bits, random_state
from tbptt.training.masking import reaches_counted
from tbptt.training.window import window_gradients
from tests.conftest import BACKENDS, make_core, make_inputs

STEPS, ROWS, COLUMNS = 6, 3, 2
SEED = tbptt.make_seed(4)
# Row 0 is read for its state alone at first, and padded at its end; row 1 has a reset between two
# stretches without weight, and row 2 one at the first step.
WEIGHT = np.array([[0, 1, 1, 2, 0, 0], [0, 0, 0.5, 0, 0, 1], [0, 1, 0, 1, 1, 1]], np.float32).T
RESET = np.array([[0, 0, 0, 0, 0, 0], [0, 0, 1, 0, 1, 0], [1, 0, 0, 0, 0, 0]], bool).T

LOSSES = {
    "squared_error": (losses.squared_error, COLUMNS),
    "absolute_error": (losses.absolute_error, COLUMNS),
    "binary_cross_entropy": (losses.binary_cross_entropy, COLUMNS),
    "gaussian_nll": (losses.gaussian_nll, 2 * COLUMNS),
}


def seen(weight, reset):
    """Where a value reaches something that counts: step by step, from the end."""
    result = weight > 0
    for t in range(len(weight) - 2, -1, -1):
        goes_on = True if reset is None else ~reset[t + 1]
        result[t] |= goes_on & result[t + 1]
    return result


@pytest.mark.parametrize("steps", [1, 2, 7, 8])
def test_what_reaches_something_counted(steps):
    rng = np.random.default_rng(steps)
    for _ in range(20):
        weight, reset = rng.random([steps, 5]) < 0.2, rng.random([steps, 5]) < 0.2
        weight = weight.astype(np.float32)
        for resets in (reset, None):
            given = None if resets is None else tf.constant(resets)
            found = reaches_counted(tf.constant(weight), given)
            np.testing.assert_array_equal(found, seen(weight, resets))


class Windows:
    """The gradients of a model's window, traced once, for any values in it."""

    def __init__(self, model, inputs, targets, *, jit=False, training=True):
        self.inputs, self.targets = np.array(inputs), np.array(targets)
        self.model, self.state = model, random_state(model, ROWS)

        def run(inputs, targets, state):
            window = tbptt.Window(
                inputs, targets, tf.constant(WEIGHT), controls=tbptt.Controls(tf.constant(RESET))
            )
            result = window_gradients(model, "mean", window, state, SEED, training=training)
            return result.gradients, result.sums["loss"].total, result.state

        self.run = tf.function(run, autograph=False, jit_compile=jit)
        self.expected = self.of()
        assert all(np.isfinite(gradient).all() for gradient in self.expected[0])

    def of(self, inputs=None, targets=None, state=None):
        given = (self.inputs, self.targets, self.state)
        of = [a if b is None else b for a, b in zip(given, (inputs, targets, state), strict=True)]
        return self.run(*tf.nest.map_structure(tf.constant, of))

    def check(self):
        """Each place of weight 0, in targets and in inputs; and a state from before a reset."""
        whole = seen(WEIGHT, RESET)
        for t, b in zip(*np.where(WEIGHT == 0), strict=True):
            if self.targets.dtype.kind == "f":
                assert_same_bits(self.of(targets=poisoned(self.targets, t, b)), self.expected)
            gradients, loss, state = self.of(inputs=poisoned(self.inputs, t, b))
            if whole[t, b]:  # it is remembered where something counts, and has to show
                assert not np.isfinite(loss)
                assert not all(np.isfinite(gradient).all() for gradient in gradients)
                continue
            assert_same_bits([gradients, loss], self.expected[:2])
            remembered = not RESET[t + 1 :, b].any()
            for part, clean in zip(*map(tf.nest.flatten, (state, self.expected[2])), strict=True):
                assert np.isnan(part[b]).any() == (remembered and np.shape(part)[-1] > 1)
                assert_same_bits(np.delete(part, b, axis=0), np.delete(clean, b, axis=0))
        for b in np.where(RESET[0] | ~whole[0])[0]:
            state = tf.nest.map_structure(lambda s, b=b: poisoned(s.numpy(), b), self.state)
            assert_same_bits(self.of(state=state)[:2], self.expected[:2])


def poisoned(values, *place):
    values = values.copy()
    values[place] = np.nan
    return values


def targets():
    return np.random.default_rng(3).random([STEPS, ROWS, COLUMNS]).astype(np.float32)


def sequence_model(core, loss="squared_error", **options):
    options = dict(dropout_rate=0.3, input_dropout_rate=0.2) | options
    loss, outputs = LOSSES[loss]
    return tbptt.SequenceModel(core, outputs, loss, seed=SEED, **options)


CORES = [(kind, backend, "gates") for kind in ("lstm", "gru") for backend in BACKENDS]
CORES += [("stack", "fused", None), ("own", "reference", None), ("own", "scan", None)]
CORES += [("lstm-layer-norm", "fused", "gates"), ("lstm-everything", "fused", "gates")]
CORES += [("lstm", "fused", "states")]


@pytest.mark.parametrize(("kind", "backend", "keep"), CORES)
def test_of_every_core(kind, backend, keep):
    options = {} if keep is None else dict(keep=keep)
    core = make_core(kind, backend=backend, learned=kind != "stack", **options)
    Windows(sequence_model(core), make_inputs(STEPS, ROWS), targets()).check()


@pytest.mark.parametrize(
    ("name", "jit"), [*((name, False) for name in LOSSES), ("gaussian_nll", True)]
)
def test_of_every_loss(name, jit):
    model = sequence_model(make_core("lstm"), name)
    Windows(model, make_inputs(STEPS, ROWS), targets(), jit=jit).check()


def test_of_cross_entropy():
    """Its targets are ids; the outputs where nothing counts may be anything."""
    model = tbptt.SequenceModel(make_core("gru"), 5, losses.cross_entropy, seed=SEED)
    ids = np.random.default_rng(0).integers(0, 5, [STEPS, ROWS])
    Windows(model, make_inputs(STEPS, ROWS), ids).check()


def test_of_a_loss_that_overflows_where_nothing_counts():
    """A deviation of exp(-100) at weight 0 has an infinite density; the gradient stays finite."""
    outputs = tf.constant([[[0.5, -100.0]], [[0.5, 0.1]]])
    weight, targets = tf.constant([[0.0], [1.0]]), tf.zeros([2, 1, 1])

    class Given(tf.Module):
        trainable_variables = (tf.Variable(outputs),)

        def initial_state(self, rows):
            return tf.zeros([rows, 1])

        def loss(self, window, state, *, training, seed):
            outputs = tf.convert_to_tensor(self.trainable_variables[0])
            return losses.window_loss(losses.gaussian_nll, {}, outputs, window), state

    window = tbptt.Window(tf.zeros([2, 1], tf.int32), targets, weight=weight)
    result = window_gradients(Given(), "mean", window, tf.zeros([1, 1]), None)
    (gradient,) = result.gradients
    scaled = 0.25 * np.exp(-0.2)
    expected = np.float32([[[0, 0]], [[0.5 * np.exp(-0.2), 1 - scaled]]])
    assert_close(gradient, expected)


def test_of_encoder_and_decoder():
    """With teacher forcing the targets are inputs too."""
    decoder = tbptt.GRU(COLUMNS, 4, seed=tbptt.make_seed(2))
    model = tbptt.EncoderDecoder(
        make_core("lstm"),
        decoder,
        COLUMNS,
        losses.squared_error,
        steps=2,
        seed=SEED,
        teacher_forcing=0.5,
    )
    truth = np.concatenate([targets(), targets()[::-1]], axis=-1)
    Windows(model, make_inputs(STEPS, ROWS), truth).check()


class Scored(tf.Module):
    """A language model of feature vectors, which scores its windows itself."""

    def __init__(self):
        super().__init__()
        self.model = tbptt.LanguageModel(
            5, 3, make_core("lstm"), seed=SEED, activation_penalty=2.0, slowness_penalty=1.0
        )
        self.w = tf.Variable(tf.eye(3))
        self.model.embedding = lambda inputs: inputs @ self.w

    def initial_state(self, rows):
        return self.model.initial_state(rows)

    def loss(self, window, state, *, training, seed):
        return self.model.loss(window, state, training=training, seed=seed)


def test_of_a_language_model_with_penalties():
    """The change from step to step is none where a row starts anew, whatever was before."""
    ids = np.random.default_rng(0).integers(0, 5, [STEPS, ROWS])
    model = Scored()
    assert len(model.trainable_variables) == 6
    Windows(model, make_inputs(STEPS, ROWS), ids).check()


def streams():
    rng = np.random.default_rng(1)
    lengths = rng.integers(2, 9, 7)
    frames = [rng.normal(size=[n, 3]).astype(np.float32) for n in lengths]
    labels = rng.random([lengths.sum(), COLUMNS]).astype(np.float32)
    values = rng.normal(size=[40, 3])
    values[[7, 20, 21], 1] = np.nan
    series = tbptt.Series(values, ("a", "b", "c"))
    common = dict(rows=2, window_length=5)
    yield tbptt.FrameStream(tbptt.Segments.of(frames), labels, **common)
    yield tbptt.FrameStream(
        tbptt.Segments.of(frames),
        labels,
        rows=2,
        truncation=tbptt.Truncation(5, stride=3, burn_in=2),
    )
    yield tbptt.SeriesStream(
        [series], tbptt.Standardizer.of(series), targets=["a", "b"], horizon=1, **common
    )


@pytest.mark.parametrize("stream", [*streams()], ids=["frames", "burn-in", "series"])
def test_of_every_stream(stream):
    """A run with NaN wherever nothing that counts is reached has the bits of a run without."""
    windows, _ = stream.windows(tbptt.Cursor(), stream.windows_per_epoch)
    nowhere = reaches_nothing(windows)
    assert nowhere.any()
    core = tbptt.LSTM(windows.inputs.shape[-1], 4, seed=SEED)
    trainer = tbptt.Trainer(sequence_model(core), optimizers.adam(0.1), jit_compile=False)
    before, results = [v.numpy() for v in trainer.variables], []
    for poison in (False, True):
        for variable, value in zip(trainer.variables, before, strict=True):
            variable.assign(value)
        inputs, truth = windows.inputs.copy(), windows.targets.copy()
        if poison:
            inputs[nowhere], truth[windows.weight == 0] = np.nan, np.nan
        chunk = tbptt.streams.feed.Chunk(
            tf.nest.map_structure(
                lambda f: None if f is None else tf.constant(f),
                windows._replace(inputs=inputs, targets=truth),
            ),
            tf.constant(0, tf.int64),
            tf.constant(len(inputs), tf.int64),
        )
        _, metrics = trainer(trainer.initial_loop_state(stream.rows), chunk)
        assert metrics.read().skipped == 0
        results.append([*trainer.variables, metrics.sums["loss"].total])
        results[-1] = [value.numpy() for value in results[-1]]
    assert_same_bits(*results)


def reaches_nothing(windows):
    """Where an input reaches nothing that counts, in its window and in those that follow."""
    weight, reset = windows.weight, windows.controls.reset
    reset = np.zeros(weight.shape, bool) if reset is None else reset.copy()
    reset[:, 0] |= windows.start
    if windows.controls.advance is None:  # one window after another: the rows' own time
        rows = weight.shape[-1]
        return ~seen(weight.reshape([-1, rows]), reset.reshape([-1, rows])).reshape(weight.shape)
    forgotten = np.cumsum(reset[:, ::-1], axis=1)[:, ::-1] - reset > 0  # by a later step
    return forgotten & ~np.stack([seen(w, r) for w, r in zip(weight, reset, strict=True)])
