"""Readouts in a language model, and in training and evaluation."""

import numpy as np
import pytest
import tensorflow as tf

import tbptt
from tbptt import optimizers, testing
from tbptt.serving.sampling import Sampler
from tbptt.testing import assert_close
from tests.conftest import make_core

VOCABULARY, EMBEDDING, HIDDEN, ROWS, STEPS = 7, 3, 4, 2, 4
SEED = tbptt.make_seed(9)
MAKE = {
    "chunked": lambda: tbptt.ChunkedSoftmax(HIDDEN, VOCABULARY, seed=SEED, chunk=3),
    "adaptive": lambda: tbptt.AdaptiveSoftmax(HIDDEN, VOCABULARY, cutoffs=[2, 4], seed=SEED),
    "sampled": lambda: tbptt.SampledSoftmax(HIDDEN, VOCABULARY, samples=5, seed=SEED),
}
READOUTS = ["default", "tied", "tied chunked", *MAKE]


def make_model(kind, dropout=0.3):
    readout, tied = None, kind.startswith("tied")
    core = make_core("lstm")
    if tied:
        core = tbptt.LSTM(HIDDEN, HIDDEN, seed=SEED)
    if kind == "tied chunked":
        readout = lambda table: tbptt.ChunkedSoftmax(  # noqa: E731
            HIDDEN, VOCABULARY, seed=SEED, chunk=3, table=table
        )
    elif kind in MAKE:
        readout = MAKE[kind]()
    return tbptt.LanguageModel(
        VOCABULARY,
        HIDDEN if tied else EMBEDDING,
        core,
        seed=tbptt.make_seed(1),
        tied=tied,
        readout=readout,
        dropout_rate=dropout,
    )


def make_stream(windows=6, tail="drop"):
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, [ROWS * STEPS * windows + 1])
    return tbptt.ContiguousStream(
        tokens, rows=ROWS, window_length=STEPS, vocabulary_size=VOCABULARY, tail=tail
    )


def train(model, jit, windows=6):
    trainer = tbptt.Trainer(model, optimizers.sgd(0.5), jit_compile=jit)
    start = tbptt.RunState(trainer.initial_loop_state(ROWS))
    reports = []
    tbptt.train(
        trainer,
        tbptt.ResidentFeed(make_stream(), 3),
        start,
        windows=windows,
        actions=[tbptt.EveryCall(reports.append)],
    )
    return [np.float32(report.metrics.loss) for report in reports], list(model.trainable_variables)


@pytest.mark.parametrize("kind", READOUTS)
def test_readouts_keep_the_laws(kind, jit):
    """Laws 4 and 5: loss and all gradients."""
    readout = make_model(kind).readout
    hidden = tf.random.stateless_normal([5, 3, HIDDEN], SEED)
    targets = np.random.default_rng(1).integers(0, VOCABULARY, [5, 3]).astype(np.int32)
    testing.check_readout(readout, hidden, tf.constant(targets), jit_compile=jit)


@pytest.mark.parametrize("kind", READOUTS)
@pytest.mark.parametrize(("training", "jit"), [(False, True), (True, False)])
def test_loss_is_the_cross_entropy_of_the_logits(kind, training, jit):
    """With the same seed the same units are dropped. A sampled readout estimates in training."""
    model = make_model(kind)
    window = make_stream().windows(tbptt.Cursor(), 1)[0].at(0)
    options = dict(training=training, seed=tbptt.make_seed(3))
    state = tf.nest.map_structure(lambda s: s + 0.5, model.initial_state(ROWS))
    run = tf.function(model.loss, autograph=False, jit_compile=jit)
    result, scored_state = run(window, state, **options)
    loss = result.loss
    logits, state = model(window.inputs, state, **options)
    assert_close(scored_state, state)
    expected = tbptt.cross_entropy(logits, window.targets)
    if kind == "sampled" and training:
        assert not np.allclose(loss, expected)
    else:
        assert_close(loss, expected)


def test_chunked_trains_as_full_does(jit):
    """From the same weights: the readout's `w` is the full one's, transposed."""
    full, chunked = make_model("default"), make_model("chunked")
    chunked.readout.w.assign(tf.transpose(full.readout.w))
    losses, _ = train(chunked, jit)
    expected, _ = train(full, jit)
    assert_close(losses, expected)
    assert_close(chunked.readout.w, tf.transpose(full.readout.w))
    assert_close(chunked.embedding.table, full.embedding.table)


def test_sampled_training_lowers_the_exact_loss(jit):
    """A text that counts up and begins again: from log 7 to next to nothing."""
    model = make_model("sampled", dropout=0.0)
    tokens = np.arange(8 * VOCABULARY + 1) % VOCABULARY
    stream = tbptt.ContiguousStream(
        tokens, rows=ROWS, window_length=STEPS, vocabulary_size=VOCABULARY
    )
    evaluator = tbptt.Evaluator(model, stream, jit_compile=jit)
    assert evaluator().loss > 1.8
    trainer = tbptt.Trainer(model, optimizers.adam(0.05), jit_compile=jit)
    start = tbptt.RunState(trainer.initial_loop_state(ROWS))
    tbptt.train(trainer, tbptt.ResidentFeed(stream, 100), start, windows=200)
    assert evaluator().loss < 0.3


@pytest.mark.parametrize(("kind", "jit"), [("tied", False), ("sampled", False), ("adaptive", True)])
def test_evaluation_is_the_cross_entropy_of_the_logits(kind, jit):
    model, stream = make_model(kind), make_stream(tail="pad")
    windows, _ = stream.windows(tbptt.Cursor(), stream.windows_per_epoch)
    windows = tf.nest.map_structure(lambda f: None if f is None else tf.constant(f), windows)
    state, total, count = model.initial_state(ROWS), 0.0, 0
    for k in range(stream.windows_per_epoch):
        window = windows.at(k)
        logits, state = model(window.inputs, state)
        each = tbptt.cross_entropy(logits, window.targets)
        weight = np.ones(each.shape) if window.weight is None else window.weight.numpy()
        total, count = total + float((each.numpy() * weight).sum()), count + int(weight.sum())
    found = tbptt.Evaluator(model, stream, jit_compile=jit)()
    assert found.weight_sum == count
    assert_close(np.float32(found.loss), np.float32(total / count))


@pytest.mark.parametrize("kind", READOUTS)
def test_every_readout_can_be_sampled_from(kind):
    model = make_model(kind)
    drawn = Sampler(model, jit_compile=False).sample([1, 2], 5, [SEED])
    assert drawn.shape == (5, 1)
    assert drawn.max() < VOCABULARY


def test_tied_readout_has_one_table_and_all_of_its_gradient():
    model = make_model("tied chunked")
    names = list(tbptt.named_parameters(model))
    assert sum("table" in name for name in names) == 1
    assert [name for name in names if "readout" in name] == ["readout.b"]
    assert len(names) == len(model.trainable_variables)
    window = make_stream().windows(tbptt.Cursor(), 1)[0].at(0)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model.loss(window, model.initial_state(ROWS))[0].loss)
    gradient = tf.convert_to_tensor(tape.gradient(loss, model.embedding.table))
    assert np.all(np.any(gradient.numpy() != 0, axis=1))  # the readout touches every token


class Lossless(tf.Module):
    """A model that cannot be trained."""

    def initial_state(self, rows):
        return ()


def test_a_model_without_a_loss_is_refused():
    message = r"Lossless has no method loss\(window, state, .* Give it one, or use a SequenceModel"
    with pytest.raises(TypeError, match=message):
        tbptt.Trainer(Lossless(), optimizers.sgd(0.1))
    with pytest.raises(TypeError, match=message):
        tbptt.Evaluator(Lossless(), make_stream())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            dict(readout=tbptt.ChunkedSoftmax(5, VOCABULARY, seed=SEED)),
            ValueError,
            r"hidden_size=5, vocabulary_size=7, but the core's output size is 4 and the vocab",
        ),
        (
            dict(readout=tbptt.ChunkedSoftmax(4, 8, seed=SEED)),
            ValueError,
            r"hidden_size=4, vocabulary_size=8, but .* the vocabulary size 7",
        ),
        (
            dict(readout=tbptt.ChunkedSoftmax(4, 7, seed=SEED), tied=True),
            ValueError,
            r"tied=True needs a function .* but got ChunkedSoftmax. Use readout=lambda table",
        ),
        (
            dict(readout=lambda table: tbptt.ChunkedSoftmax(4, 7, seed=SEED), tied=True),
            ValueError,
            r"ChunkedSoftmax does not use the embedding's table. Hand it on",
        ),
        (
            dict(readout=lambda table: None),
            TypeError,
            r"readout is function, which has no logits and loss",
        ),
    ],
    ids=["hidden size", "vocabulary size", "tied module", "not tied", "function"],
)
def test_readouts_that_do_not_fit_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        tbptt.LanguageModel(VOCABULARY, 4, tbptt.LSTM(4, 4, seed=SEED), seed=SEED, **options)
