"""The language model and dropout."""

import numpy as np
import pytest
import tensorflow as tf

import tbptt
from tbptt import testing
from tbptt.testing import assert_close, assert_same_bits


def make(tied=False, dropout=0.0, per="step"):
    seeds = tbptt.split_seed(tbptt.make_seed(0), 3)
    core = tbptt.Stack(
        [tbptt.LSTM(4, 4, seed=seeds[0]), tbptt.GRU(4, 4, seed=seeds[1])],
        dropout_rate=dropout,
        dropout_per=per,
    )
    return tbptt.LanguageModel(
        9, 4, core, seed=seeds[2], tied=tied, dropout_rate=dropout, dropout_per=per
    )


WINDOW = tbptt.Window(
    tf.constant(np.arange(10).reshape(5, 2) % 9), tf.constant(np.arange(10).reshape(5, 2) % 9)
)


def test_logits_by_hand():
    model = make()
    logits, _ = model(WINDOW.inputs, model.initial_state(2))
    x = tf.nn.embedding_lookup(model.embedding.table, WINDOW.inputs)
    h, _ = model.core(x, model.core.initial_state(2))
    assert_close(logits, h @ model.readout.w + model.readout.b)


def test_tied_weights_share_one_table_and_sum_its_gradients():
    model = make(tied=True)
    names = list(tbptt.named_parameters(model))
    assert sum(name.endswith("table") for name in names) == 1
    assert [name for name in names if "readout" in name] == ["readout.b"]
    with tf.GradientTape() as tape:
        logits, _ = model(WINDOW.inputs, model.initial_state(2))
        loss = tf.reduce_sum(tbptt.cross_entropy(logits, WINDOW.targets))
    gradient = tf.convert_to_tensor(tape.gradient(loss, model.embedding.table))
    assert np.all(np.any(gradient.numpy() != 0, axis=1))  # the readout touches every token


def test_tied_weights_of_different_sizes_are_refused():
    core = tbptt.LSTM(4, 5, seed=tbptt.make_seed(0))
    with pytest.raises(
        ValueError, match=r"embedding_size \(4\) equal to the core's output size \(5"
    ):
        tbptt.LanguageModel(9, 4, core, seed=tbptt.make_seed(0), tied=True)


def test_dropout_only_in_training(jit):
    model = make(dropout=0.5)
    run = tf.function(
        lambda training, seed: model(
            WINDOW.inputs, model.initial_state(2), training=training, seed=seed
        )[0],
        jit_compile=jit,
        autograph=False,
    )
    seed, other = tbptt.make_seed(5), tbptt.make_seed(6)
    assert_same_bits(run(False, seed), run(False, other))
    assert_same_bits(run(True, seed), run(True, seed))
    assert not np.allclose(run(True, seed), run(True, other))
    assert not np.allclose(run(True, seed), run(False, seed))


@pytest.mark.parametrize("per", ["step", "window"])
def test_dropout_masks(per, jit):
    ones = tf.ones([50, 4, 30])
    run = tf.function(
        lambda seed: tbptt.dropout(ones, 0.25, seed, per=per), jit_compile=jit, autograph=False
    )
    dropped = run(tbptt.make_seed(1)).numpy()
    assert set(np.unique(dropped)) == {np.float32(0), np.float32(1) / np.float32(0.75)}
    same_at_every_step = (dropped == dropped[:1]).all()
    assert same_at_every_step == (per == "window")
    units = dropped[0] if per == "window" else dropped
    assert abs((units == 0).mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / units.size)


def test_dropout_is_the_same_compiled_or_not():
    x = tf.random.stateless_normal([6, 2, 8], tbptt.make_seed(2))
    plain = tbptt.dropout(x, 0.5, tbptt.make_seed(3))
    compiled = tf.function(tbptt.dropout, jit_compile=True, autograph=False)(
        x, 0.5, tbptt.make_seed(3)
    )
    assert_close(plain, compiled)


def test_dropout_at_rate_0_is_nothing():
    x = tf.ones([2, 2, 2])
    assert tbptt.dropout(x, 0.0, None) is x


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(rate=1.0, seed=0), r"dropout rate \(1.0\) must be at least 0.0 and below 1.0"),
        (dict(rate=0.5, seed=None), "needs a seed"),
        (dict(rate=0.5, seed=0, per="batch"), r"per \('batch'\) must be one of step, window"),
    ],
)
def test_dropout_settings_are_refused(options, message):
    if options["seed"] is not None:
        options["seed"] = tbptt.make_seed(options["seed"])
    with pytest.raises(ValueError, match=message):
        tbptt.dropout(tf.ones([2, 2, 2]), **options)


def test_initial_state_of_no_rows_is_refused():
    with pytest.raises(ValueError, match=r"rows \(0\) must be at least 1"):
        make().initial_state(0)


def test_seeds_differ_and_weights_follow_them():
    first, second = tbptt.split_seed(tbptt.make_seed(0), 2)
    a = tbptt.LSTM(3, 4, seed=first)
    assert_same_bits(a.variables, tbptt.LSTM(3, 4, seed=first).variables)
    assert not np.allclose(a.w_x, tbptt.LSTM(3, 4, seed=second).w_x)


def test_first_values():
    lstm = tbptt.LSTM(3, 4, seed=tbptt.make_seed(0), forget_bias=2.0)
    assert lstm.b.numpy().reshape(4, 4)[:, 0].tolist() == [0, 2, 0, 0]
    blocks = np.split(lstm.w_h.numpy(), 4, axis=1)
    for block in blocks:
        np.testing.assert_allclose(block.T @ block, np.eye(4), atol=1e-5)
    assert not np.allclose(blocks[0], blocks[1])


def test_embedding_dropout_drops_ids_for_a_whole_window(jit):
    core = tbptt.Recurrent(lambda x, s: (x, s), lambda rows: tf.zeros([rows, 1]), output_size=4)
    model = tbptt.LanguageModel(
        9, 4, core, seed=tbptt.make_seed(0), tied=True, embedding_dropout=0.5
    )
    ids = tf.constant(np.arange(90).reshape(30, 3) % 9)
    table = tf.matmul(model.embedding.table, model.embedding.table, transpose_b=True)
    run = tf.function(
        lambda seed: model(ids, model.initial_state(3), training=True, seed=seed)[0],
        jit_compile=jit,
        autograph=False,
    )
    logits = run(tbptt.make_seed(3)).numpy()
    dropped = [bool((logits[ids == k] == 0).all()) for k in range(9)]
    assert 0 < sum(dropped) < 9
    for k in range(9):
        expected = np.zeros(9, np.float32) if dropped[k] else 2 * table[k].numpy()
        assert_close(logits[ids == k], np.tile(expected, [10, 1]))
    assert_close(model(ids, model.initial_state(3))[0], tf.gather(table, ids))


def test_penalties_by_hand():
    """In training alone; a step that starts anew, or begins the window, did not change."""
    core = tbptt.LSTM(4, 4, seed=tbptt.make_seed(0))
    options = dict(seed=tbptt.make_seed(1))
    plain = tbptt.LanguageModel(9, 4, core, **options)
    model = tbptt.LanguageModel(9, 4, core, activation_penalty=2.0, slowness_penalty=3.0, **options)
    reset = np.zeros([5, 2], bool)
    reset[3, 1] = True
    window = WINDOW._replace(controls=tbptt.Controls(tf.constant(reset)))
    state = model.initial_state(2)
    scored, _ = model.loss(window, state, training=True)
    expected, _ = plain.loss(window, state, training=True)
    h, _ = core(model.embedding(window.inputs), state, window.controls)
    h = h.numpy()
    change = np.zeros([5, 2], np.float32)
    change[1:] = ((h[1:] - h[:-1]) ** 2).mean(-1)
    change[3, 1] = 0
    assert_close(scored.loss, expected.loss)
    assert_close(scored.penalty, 2.0 * (h**2).mean(-1) + 3.0 * change)
    assert_close(model.loss(window, state)[0].loss, plain.loss(window, state)[0].loss)
    assert model.loss(window, state)[0].penalty is None


@pytest.mark.parametrize("kind", ["language", "sequence", "encoder-decoder"])
def test_models_keep_the_laws(kind, jit):
    seeds = tbptt.split_seed(tbptt.make_seed(4), 3)
    core, window = tbptt.LSTM(3, 4, seed=seeds[0]), WINDOW
    if kind != "language":
        numbers = tf.random.stateless_normal([5, 2, 5], seeds[2])
        window = tbptt.Window(numbers[..., :3], numbers[..., 3:], weight=numbers[..., 0] ** 2)
    if kind == "language":
        options = dict(dropout_rate=0.3, activation_penalty=2.0, slowness_penalty=3.0)
        model = tbptt.LanguageModel(9, 3, core, seed=seeds[1], **options)
    elif kind == "sequence":
        metrics = {"distance": tbptt.absolute_error}
        model = tbptt.SequenceModel(
            core, 2, tbptt.squared_error, seed=seeds[1], metrics=metrics, input_dropout_rate=0.2
        )
    else:
        decoder, options = tbptt.LSTM(1, 4, seed=seeds[2]), dict(steps=2, teacher_forcing=0.5)
        model = tbptt.EncoderDecoder(
            core, decoder, 1, tbptt.squared_error, seed=seeds[1], **options
        )
    testing.check_model(model, window, jit_compile=jit)


def test_sequence_model_by_hand():
    core = tbptt.LSTM(3, 4, seed=tbptt.make_seed(0))
    model = tbptt.SequenceModel(core, 2, tbptt.squared_error, seed=tbptt.make_seed(1), bypass=2)
    x = tf.random.stateless_normal([5, 2, 5], tbptt.make_seed(2))
    outputs, state = model(x, model.initial_state(2))
    h, expected_state = model.core(x[..., 2:], model.core.initial_state(2))
    assert_close(outputs, h @ model.readout.w + model.readout.b + x[..., :2])
    assert_close(state, expected_state)
    with pytest.raises(ValueError, match=r"bypass \(1\) must be 0 or at least output_size \(2\)"):
        tbptt.SequenceModel(core, 2, tbptt.squared_error, seed=tbptt.make_seed(1), bypass=1)
