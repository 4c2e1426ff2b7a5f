"""Readouts in a language model, and models that score their windows themselves, in training."""

import numpy as np
import pytest
import tensorflow as tf

import tbptt
from tbptt import optimizers
from tests.conftest import assert_close, assert_same_bits, make_core

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


def train(model, loss, jit, windows=6):
    trainer = tbptt.Trainer(model, loss, optimizers.sgd(0.5), jit_compile=jit)
    start = tbptt.Position(trainer.initial_carry(ROWS))
    reports = []
    tbptt.train(
        trainer,
        tbptt.ResidentFeed(make_stream(), 3),
        start,
        windows=windows,
        actions=[tbptt.Every(0, reports.append)],
    )
    return [np.float32(report.metrics.loss) for report in reports], list(model.trainable_variables)


@pytest.mark.parametrize("kind", READOUTS)
@pytest.mark.parametrize(("training", "jit"), [(False, True), (True, False)])
def test_score_is_the_cross_entropy_of_the_logits(kind, training, jit):
    """With the same seed the same units are dropped. A sampled readout estimates in training."""
    model = make_model(kind)
    window = make_stream().windows(tbptt.Cursor(), 1)[0].at(0)
    options = dict(training=training, seed=tbptt.make_seed(3))
    state = tf.nest.map_structure(lambda s: s + 0.5, model.initial_state(ROWS))
    score = tf.function(model.score, autograph=False, jit_compile=jit)
    loss, scored_state = score(window, state, **options)
    logits, state = model(window, state, **options)
    assert_close(scored_state, state)
    expected = tbptt.cross_entropy(logits, window.targets)
    if kind == "sampled" and training:
        assert not np.allclose(loss, expected)
    else:
        assert_close(loss, expected)


def test_default_readout_scores_to_the_bit():
    model = make_model("default")
    window = make_stream().windows(tbptt.Cursor(), 1)[0].at(0)
    logits, _ = model(window, model.initial_state(ROWS))
    loss, _ = model.score(window, model.initial_state(ROWS))
    assert_same_bits(loss, tbptt.cross_entropy(logits, window.targets))


@pytest.mark.parametrize("kind", ["default", "tied chunked", "adaptive"])
def test_training_without_a_loss_is_training_with_cross_entropy(kind):
    """With dropout, over six windows of two calls: every loss and every parameter."""
    with_loss = train(make_model(kind), tbptt.cross_entropy, jit=False)
    assert_close(train(make_model(kind), None, jit=False), with_loss)


def test_chunked_trains_as_dense_does(jit):
    """From the same weights: the readout's `w` is the dense one's, transposed."""
    dense, chunked = make_model("default"), make_model("chunked")
    chunked.readout.w.assign(tf.transpose(dense.readout.w))
    losses, _ = train(chunked, None, jit)
    expected, _ = train(dense, tbptt.cross_entropy, jit)
    assert_close(losses, expected)
    assert_close(chunked.readout.w, tf.transpose(dense.readout.w))
    assert_close(chunked.embedding.table, dense.embedding.table)


def test_sampled_training_lowers_the_exact_loss(jit):
    """A text that counts up and begins again: from log 7 to next to nothing."""
    model = make_model("sampled", dropout=0.0)
    tokens = np.arange(8 * VOCABULARY + 1) % VOCABULARY
    stream = tbptt.ContiguousStream(
        tokens, rows=ROWS, window_length=STEPS, vocabulary_size=VOCABULARY
    )
    evaluator = tbptt.Evaluator(model, None, stream, jit_compile=jit)
    assert evaluator().loss > 1.8
    trainer = tbptt.Trainer(model, None, optimizers.adam(0.05), jit_compile=jit)
    start = tbptt.Position(trainer.initial_carry(ROWS))
    tbptt.train(trainer, tbptt.ResidentFeed(stream, 100), start, windows=200)
    assert evaluator().loss < 0.3


@pytest.mark.parametrize(
    ("kind", "jit"), [("tied chunked", False), ("sampled", False), ("adaptive", True)]
)
def test_evaluation_without_a_loss_is_that_with_cross_entropy(kind, jit):
    model, stream = make_model(kind), make_stream(tail="pad")
    by_model, by_loss = (
        tbptt.Evaluator(model, loss, stream, jit_compile=jit)()
        for loss in (None, tbptt.cross_entropy)
    )
    assert by_model.weight_sum == by_loss.weight_sum
    assert_close(np.float32(by_model.loss), np.float32(by_loss.loss))


@pytest.mark.parametrize("kind", READOUTS)
def test_every_readout_can_be_sampled_from(kind):
    model = make_model(kind)
    drawn = tbptt.generate(model, np.array([1, 2]), 5, seed=SEED)
    assert drawn.shape == (5,)
    assert drawn.max() < VOCABULARY


def test_tied_readout_has_one_table_and_all_of_its_gradient():
    model = make_model("tied chunked")
    names = list(tbptt.named_parameters(model))
    assert sum("table" in name for name in names) == 1
    assert [name for name in names if "readout" in name] == ["readout.b"]
    assert len(names) == len(model.trainable_variables)
    window = make_stream().windows(tbptt.Cursor(), 1)[0].at(0)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model.score(window, model.initial_state(ROWS))[0])
    gradient = tf.convert_to_tensor(tape.gradient(loss, model.embedding.table))
    assert np.all(np.any(gradient.numpy() != 0, axis=1))  # the readout touches every token


class Scoreless(tf.Module):
    """A model as small as one can be."""

    def initial_state(self, batch_size):
        return ()


def test_no_loss_and_no_score_is_refused():
    message = r"loss is None, but Scoreless has no method score.* or pass a loss"
    with pytest.raises(TypeError, match=message):
        tbptt.Trainer(Scoreless(), None, optimizers.sgd(0.1))
    with pytest.raises(TypeError, match=message):
        tbptt.Evaluator(Scoreless(), None, make_stream())


def test_a_loss_that_leaves_out_what_a_model_trains_with_is_refused():
    """Penalties and the sampled estimate are in `score` alone; evaluation needs neither."""
    core = tbptt.LSTM(4, 4, seed=SEED)
    penalised = dict(activation_penalty=2.0, slowness_penalty=1.0)
    sampled = dict(readout=tbptt.SampledSoftmax(4, VOCABULARY, samples=3, seed=SEED))
    for options, name in (
        (penalised, r"activation_penalty=2.0 and slowness_penalty=1.0"),
        (sampled, "SampledSoftmax"),
    ):
        model = tbptt.LanguageModel(VOCABULARY, 4, core, seed=SEED, **options)
        message = rf"A loss was given \(cross_entropy\), but LanguageModel has {name}, .* loss=None"
        with pytest.raises(ValueError, match=message):
            tbptt.Trainer(model, tbptt.cross_entropy, optimizers.sgd(0.1))
        tbptt.Trainer(model, None, optimizers.sgd(0.1))
        tbptt.Evaluator(model, tbptt.cross_entropy, make_stream(), jit_compile=False)


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
            r"readout is function, which has no logits and score",
        ),
    ],
    ids=["hidden size", "vocabulary size", "tied module", "not tied", "function"],
)
def test_readouts_that_do_not_fit_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        tbptt.LanguageModel(VOCABULARY, 4, tbptt.LSTM(4, 4, seed=SEED), seed=SEED, **options)
