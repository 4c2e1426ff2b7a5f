"""One list of all that computes: each item runs plain and through XLA, and says the same.

A public layer, loss or transform that is missing from the list fails a test.
"""

import numpy as np
import pytest
import tensorflow as tf

import tbptt
from tbptt import losses, optimizers
from tbptt.testing import assert_close, random_state
from tests.conftest import make_core, make_inputs

SEED = tbptt.make_seed(0)
X = make_inputs(3, 2)
IDS = tf.constant([[1, 2], [0, 3], [2, 2]])


def of_core(kind):
    core = make_core(kind)
    return lambda: core(X, random_state(core, 2))


def of_transform(transform):
    parameters = [tf.constant([[1.0, -2.0]]), tf.constant([0.5])]
    gradients = [tf.constant([[0.3, 4.0]]), tf.constant([-0.2])]
    step = tf.constant(7, tf.int64)
    return lambda: transform.update(gradients, transform.init(parameters), parameters, step)


def of_schedule(schedule):
    return lambda: schedule(tf.constant(7, tf.int64))


def of_module(module, *inputs):
    return lambda: module(*inputs)


def of_model():
    model = tbptt.LanguageModel(5, 3, make_core("lstm"), seed=SEED, dropout_rate=0.5)
    return lambda: model(IDS, model.initial_state(2), training=True, seed=SEED)


def of_sequence_model():
    model = tbptt.SequenceModel(
        make_core("lstm"), 2, losses.squared_error, seed=SEED, dropout_rate=0.5, bypass=2
    )
    window = tbptt.Window(tf.concat([X[..., :2], X], axis=-1), X[..., :2])
    return lambda: model.loss(window, model.initial_state(2), training=True, seed=SEED)[0].loss


def of_encoder_decoder():
    model = tbptt.EncoderDecoder(
        make_core("lstm"),
        tbptt.GRU(2, 4, seed=SEED),
        2,
        losses.squared_error,
        steps=2,
        seed=SEED,
        teacher_forcing=0.5,
    )
    window = tbptt.Window(X, tf.tile(X[..., :2], [1, 1, 2]))
    return lambda: model.loss(window, model.initial_state(2), training=True, seed=SEED)[0].loss


def of_readout(readout):
    return lambda: (readout.logits(X), readout.loss(X, IDS, training=True, seed=SEED))


ITEMS = {
    "LSTM": of_core("lstm"),
    "GRU": of_core("gru"),
    "Stack": of_core("stack"),
    "Recurrent": of_core("own"),
    "Dense": of_module(tbptt.Dense(3, 4, seed=SEED), X),
    "Embedding": of_module(tbptt.Embedding(5, 4, seed=SEED), IDS),
    "FullSoftmax": of_readout(tbptt.FullSoftmax(3, 5, seed=SEED)),
    "ChunkedSoftmax": of_readout(tbptt.ChunkedSoftmax(3, 5, seed=SEED, chunk=2)),
    "AdaptiveSoftmax": of_readout(tbptt.AdaptiveSoftmax(3, 5, cutoffs=[1, 3], seed=SEED)),
    "SampledSoftmax": of_readout(tbptt.SampledSoftmax(3, 5, samples=4, seed=SEED)),
    "EncoderDecoder": of_encoder_decoder(),
    "LanguageModel": of_model(),
    "SequenceModel": of_sequence_model(),
    "dropout": lambda: tbptt.dropout(X, 0.5, SEED),
    "unroll": lambda: tbptt.unroll(lambda x, s: (x + s, x + s), X, tf.zeros([2, 3])),
    "cross_entropy": lambda: tbptt.cross_entropy(tf.tile(X, [1, 1, 2]), IDS),
    "binary_cross_entropy": lambda: tbptt.binary_cross_entropy(X, tf.sigmoid(X)),
    "squared_error": lambda: tbptt.squared_error(X, X + 1.0),
    "absolute_error": lambda: tbptt.absolute_error(X, X + 1.0),
    "gaussian_nll": lambda: tbptt.gaussian_nll(tf.tile(X, [1, 1, 2]), X + 1.0),
    "counted_only": lambda: losses.counted_only(X, tf.cast(IDS, tf.float32)),
    "window_loss": lambda: losses.window_loss(
        losses.squared_error,
        {"distance": losses.absolute_error},
        X,
        tbptt.Window(X, X + 1.0, tf.cast(IDS, tf.float32)),
    )[:2],
    "weighted_sum": lambda: losses.weighted_sum(X[..., 0], tf.cast(IDS, tf.float32)),
    "reduce": lambda: losses.reduce("mean", tf.constant(3.0), tf.constant(2.0), 2),
    "sgd": of_transform(optimizers.sgd(0.1, momentum=0.9)),
    "rmsprop": of_transform(optimizers.rmsprop(0.1)),
    "adam": of_transform(optimizers.adam(0.1)),
    "adamw": of_transform(optimizers.adamw(0.1, weight_decay=0.1)),
    "accumulate": of_transform(optimizers.accumulate(2, optimizers.adam(0.1))),
    "add_weight_decay": of_transform(optimizers.add_weight_decay(0.1)),
    "clip_by_global_norm": of_transform(optimizers.clip_by_global_norm(1.0)),
    "clip_by_value": of_transform(optimizers.clip_by_value(1.0)),
    "chain": of_transform(optimizers.chain(optimizers.clip_by_value(1.0), optimizers.sgd(1.0))),
    "constant": of_schedule(optimizers.constant(0.1)),
    "epoch_decay": of_schedule(optimizers.epoch_decay(1.0, 0.5, 2, 3)),
    "warmup_cosine": of_schedule(optimizers.warmup_cosine(1.0, 2, 20)),
}
# Public names that compute nothing on tensors: values, streams, programs, files.
NOT_COMPUTING = {
    "Average", "ContiguousStream", "ContinuityError", "Controls", "Cursor", "DocumentStream",
    "Evaluation", "Evaluator", "Every", "EveryCall", "FrameStream", "GRUState", "GradientTransform",
    "KeepBest", "LSTMState", "LossScale", "NonFiniteError", "Segments", "RunState",
    "PrefetchFeed", "Profile", "Progress", "Report", "ResidentFeed", "Standardizer", "Schedule",
    "Series", "SeriesStream", "SummaryWriter", "Trainer", "Truncation", "Vocabulary", "Window",
    "WindowLoss",
    "bits", "encode_documents", "load_parameters", "make_seed", "named_parameters",
    "open_feed", "perplexity", "read_documents", "read_series", "save_parameters", "split_seed",
    "train",
}  # fmt: skip


@pytest.mark.parametrize("name", ITEMS)
def test_compiled_says_what_plain_says(name):
    plain = tf.function(ITEMS[name], autograph=False)()
    compiled = tf.function(ITEMS[name], autograph=False, jit_compile=True)()
    assert_close(compiled, plain)
    assert all(np.isfinite(part).all() for part in tf.nest.flatten(plain))


def public(module):
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and callable(value)
        and getattr(value, "__module__", "").startswith("tbptt")
    }


def test_nothing_public_is_missing():
    names = set(tbptt.__all__) | public(optimizers) | public(losses)
    assert names - NOT_COMPUTING == set(ITEMS)
