"""Sequence to sequence: by hand, forced and free, and learnt."""

import numpy as np
import pytest
import tensorflow as tf

import tbptt
from tbptt import optimizers
from tbptt.testing import assert_close, assert_same_bits, random_state
from tests.conftest import make_core, make_inputs

STEPS, ROWS, AHEAD, COLUMNS = 4, 3, 3, 2
SEED = tbptt.make_seed(1)


def make(**options):
    decoder = tbptt.LSTM(COLUMNS, 5, seed=tbptt.make_seed(2))
    return tbptt.EncoderDecoder(
        make_core("lstm"), decoder, COLUMNS, outputs_alone, steps=AHEAD, seed=SEED, **options
    )


def outputs_alone(outputs, targets):
    """In place of a loss: what the model puts out, so that it can be seen in training."""
    return outputs


def forecast(model, window, state, **options):
    """Outputs and state of a window, in training with its targets."""
    result, state = model.loss(window, state, **options)
    return result.loss, state


def make_window():
    rng = np.random.default_rng(0)
    targets = tf.constant(rng.normal(size=[STEPS, ROWS, AHEAD * COLUMNS]), tf.float32)
    reset = tf.constant(rng.random([STEPS, ROWS]) < 0.3)
    return tbptt.Window(make_inputs(STEPS, ROWS), targets, controls=tbptt.Controls(reset))


def by_hand(model, window, state, forced, bypass=0):
    """Step by step, from the equations alone."""
    h, _ = model.encoder(window.inputs[..., bypass:], state, window.controls)
    outputs = np.zeros([STEPS, ROWS, AHEAD, COLUMNS], np.float32)
    for t in range(STEPS):
        now = window.inputs[t, :, :COLUMNS]
        truth = tf.reshape(window.targets[t], [ROWS, AHEAD, COLUMNS]) - now[:, None]
        parts = [tf.tanh(h[t] @ bridge.w + bridge.b) for bridge in model.bridges]
        inner, value = tbptt.LSTMState(*parts), tf.zeros([ROWS, COLUMNS])
        for j in range(AHEAD):
            d, inner = model.decoder(value[None], inner)
            value = value + d[0] @ model.readout.w + model.readout.b
            outputs[t, :, j] = value + now
            value = truth[:, j] if forced else value
    return outputs.reshape([STEPS, ROWS, -1])


@pytest.mark.parametrize("forced", [False, True])
def test_forecasts_by_hand(forced):
    model, window = make(teacher_forcing=float(forced)), make_window()
    state = random_state(model.encoder, ROWS)
    outputs, last = forecast(model, window, state, training=forced, seed=SEED)
    assert_close(outputs, by_hand(model, window, state, forced))
    assert_close(last, model.encoder(window.inputs, state, window.controls)[1])


def test_bypass_is_not_for_the_encoder():
    model, window = make(bypass=COLUMNS), make_window()
    levels = make_inputs(STEPS, ROWS, seed=5)[..., :COLUMNS]
    window = window._replace(inputs=tf.concat([levels, window.inputs], -1))
    state = random_state(model.encoder, ROWS)
    outputs, _ = model(window.inputs, state, window.controls)
    assert_close(outputs, by_hand(model, window, state, forced=False, bypass=COLUMNS))


def test_nothing_is_forced_outside_of_training():
    window = make_window()
    state = random_state(make().encoder, ROWS)
    free, _ = forecast(make(), window, state)
    assert_same_bits(forecast(make(teacher_forcing=1.0), window, state)[0], free)
    blind = window._replace(targets=tf.fill(window.targets.shape, np.nan))
    assert_same_bits(forecast(make(teacher_forcing=1.0), blind, state)[0], free)


def test_a_forecast_does_not_know_what_comes():
    """Nothing from after step t reaches the forecast from t: neither inputs nor targets."""
    model, window = make(teacher_forcing=0.5), make_window()
    state = random_state(model.encoder, ROWS)
    later = window._replace(inputs=tf.concat([window.inputs[:2], window.inputs[2:] + 1.0], 0))
    same, other = (forecast(model, w, state)[0] for w in (window, later))
    assert_same_bits(same[:2], other[:2])
    assert not np.allclose(same[2:], other[2:])
    last = forecast(model, window, state, training=True, seed=SEED)[0]
    bent = window._replace(targets=window.targets + np.eye(6)[5] + np.eye(6)[4])
    assert_same_bits(
        forecast(model, bent, state, training=True, seed=SEED)[0], last
    )  # the last is no input


def test_scheduled_sampling_forces_some():
    window, state = make_window(), random_state(make().encoder, ROWS)
    free, some, every = (
        forecast(make(teacher_forcing=rate), window, state, training=True, seed=SEED)[0].numpy()
        for rate in (0.0, 0.5, 1.0)
    )
    second = slice(COLUMNS, 2 * COLUMNS)  # depends on one draw alone
    as_free = np.isclose(some, free)[..., second].all(-1)
    as_forced = np.isclose(some, every)[..., second].all(-1)
    assert (as_free ^ as_forced).all()
    assert as_free.any()
    assert as_forced.any()


class Masks(tf.Module):
    """A decoder that puts out its dropout mask."""

    output_size = COLUMNS

    def initial_state(self, rows):
        return tf.zeros([rows, 1])

    def __call__(self, inputs, state, controls=None, *, training=False, seed=None):
        ones = tf.ones([*inputs.shape[:2], COLUMNS])
        return tbptt.dropout(ones, 0.5 if training else 0.0, seed), state


def test_the_decoder_draws_other_masks_at_every_step(jit):
    """A forecast's steps differ from each other by the decoder's outputs, here masks of 0 and 2."""
    model = tbptt.EncoderDecoder(
        make_core("lstm"), Masks(), COLUMNS, outputs_alone, steps=AHEAD, seed=SEED
    )
    model.readout.w.assign(tf.eye(COLUMNS))
    window, state = make_window(), random_state(model.encoder, ROWS)
    run = tf.function(
        lambda training: forecast(model, window, state, training=training, seed=SEED)[0],
        autograph=False, jit_compile=jit,
    )  # fmt: skip
    outputs = tf.reshape(run(True), [-1, AHEAD, COLUMNS])
    now = tf.reshape(window.inputs[..., :COLUMNS], [-1, 1, COLUMNS])
    masks = np.round(np.diff(tf.concat([now, outputs], 1), axis=1), 4)
    assert set(masks.flat) == {0.0, 2.0}
    for j in range(1, AHEAD):
        assert 0.2 < np.mean(masks[:, j] == masks[:, j - 1]) < 0.8
    assert_same_bits(run(True), run(True))


def test_learns_to_go_on_with_a_wave_beyond_its_window():
    t = np.arange(600)
    wave = tbptt.Series(np.stack([np.sin(t / 4), np.cos(t / 4)], 1), ("a", "b"))
    scale = tbptt.Standardizer.of(wave)
    stream = tbptt.SeriesStream(
        [wave], scale, rows=4, window_length=8, targets=["a"], horizon=5, path=True
    )
    seeds = tbptt.split_seed(SEED, 3)
    model = tbptt.EncoderDecoder(
        tbptt.GRU(2, 16, seed=seeds[0]),
        tbptt.GRU(1, 16, seed=seeds[1]),
        1,
        tbptt.squared_error,
        steps=5,
        seed=seeds[2],
    )
    trainer = tbptt.Trainer(model, optimizers.adam(1e-2), jit_compile=False)
    evaluate = tbptt.Evaluator(model, stream, jit_compile=False)
    before = evaluate().loss
    start = tbptt.RunState(trainer.initial_loop_state(4))
    tbptt.train(trainer, tbptt.open_feed(stream, 18), start, windows=180)
    assert evaluate().loss < 0.05 * before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(teacher_forcing=1.5), r"teacher_forcing \(1.5\) must be a probability"),
        (dict(teacher_forcing=-0.1), r"teacher_forcing \(-0.1\) must be at least 0"),
        (dict(dropout_rate=1.0), r"dropout rate \(1.0\)"),
        (dict(bypass=-1), r"bypass \(-1\) must be at least 0"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_decoder_whose_state_cannot_be_bridged():
    decoder = tbptt.Recurrent(
        lambda x, s: (x, s), lambda rows: tf.zeros([rows, 2, 2]), output_size=COLUMNS
    )
    with pytest.raises(ValueError, match=r"decoder.initial_state\(1\)"):
        tbptt.EncoderDecoder(make_core("lstm"), decoder, COLUMNS, outputs_alone, steps=2, seed=SEED)
