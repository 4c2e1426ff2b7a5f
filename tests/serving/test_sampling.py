"""Sampling: each setting by hand, one program, and a row's tokens whatever its batch."""

import numpy as np
import pytest
import tensorflow as tf

import tbptt
from tbptt.serving.sampling import Sampler, Sampling, draw, ranked_probabilities, uniforms
from tbptt.testing import assert_close, assert_same_bits

SEEDS = tbptt.split_seed(tbptt.make_seed(8), 3)
LOGITS = np.log(np.float32([[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]]))
NONE_SEEN = tf.zeros([2, 4], tf.bool)


def distribution(logits=LOGITS, seen=NONE_SEEN, **settings):
    """The probabilities of tokens 0 to V - 1."""
    ids, p = ranked_probabilities(tf.constant(logits), seen, Sampling(**settings).as_tensors())
    assert np.all(np.diff(p, axis=-1) <= 0)
    return np.take_along_axis(p.numpy(), np.argsort(ids, axis=-1), axis=-1)


def normalised(*rows):
    rows = np.float32(rows)
    return rows / rows.sum(axis=-1, keepdims=True)


def test_settings_by_hand():
    assert_close(distribution(), np.exp(LOGITS))
    assert_close(distribution(temperature=0.5), normalised(*np.exp(2 * LOGITS)))
    assert_close(distribution(top_k=2), normalised([4, 3, 0, 0], [0, 0, 3, 4]))
    assert_close(distribution(top_p=0.69), normalised([4, 3, 0, 0], [0, 0, 3, 4]))
    assert_close(distribution(top_p=0.71), normalised([4, 3, 2, 0], [0, 2, 3, 4]))
    assert_close(distribution(top_p=0.01), normalised([1, 0, 0, 0], [0, 0, 0, 1]))
    assert_close(distribution(min_p=0.6), normalised([4, 3, 0, 0], [0, 0, 3, 4]))
    seen = tf.constant([[True, False, False, False], [False] * 4])
    positive = np.float32([[2.0, 1.0, 0.0, -1.0], [2.0, 1.0, 0.0, -1.0]])
    expected = [np.exp([1.0, 1.0, 0.0, -1.0]), np.exp([2.0, 1.0, 0.0, -1.0])]
    assert_close(distribution(positive, seen, repetition_penalty=2.0), normalised(*expected))
    negative = np.float32([[-1.0, 0.0, 0.0, 0.0]] * 2)
    expected = [np.exp([-2.0, 0.0, 0.0, 0.0]), np.exp([-1.0, 0.0, 0.0, 0.0])]
    assert_close(distribution(negative, seen, repetition_penalty=2.0), normalised(*expected))


def test_a_draw_inverts_the_distribution():
    ids, p = tf.constant([[2, 0, 1]] * 6), tf.constant([[0.5, 0.3, 0.2]] * 5 + [[0.6, 0.4, 0.0]])
    drawn = draw(ids, p, tf.constant([0.0, 0.49, 0.51, 0.79, 0.81, 0.9999999]))
    assert drawn.numpy().tolist() == [2, 2, 0, 0, 1, 0]


def test_numbers_of_a_seed_go_on_and_are_uniform():
    whole = uniforms(np.array([[0, 1], [0, 2]]), 0, 5000)
    assert_same_bits(uniforms(np.array([[0, 2]]), 1000, 50)[:, 0], whole[1000:1050, 1])
    assert 0 <= whole.min() < whole.max() < 1
    assert np.abs(whole.mean(axis=0) - 0.5).max() < 4 / np.sqrt(12 * 5000)
    assert abs(np.corrcoef(whole.T)[0, 1]) < 4 / np.sqrt(5000)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(temperature=0.0), r"temperature \(0.0\) must be above 0"),
        (dict(temperature=float("nan")), r"temperature \(nan\)"),
        (dict(top_k=-1), r"top_k \(-1\) must be at least 0"),
        (dict(top_p=0.0), r"top_p \(0.0\) must be above 0 and at most 1"),
        (dict(min_p=1.0), r"min_p \(1.0\)"),
        (dict(repetition_penalty=0.0), r"repetition_penalty \(0.0\)"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**settings)


@pytest.fixture(scope="module")
def model():
    core = tbptt.LSTM(3, 4, seed=SEEDS[0])
    made = tbptt.LanguageModel(7, 3, core, seed=SEEDS[1])
    made.readout.w.assign(3.0 * made.readout.w)
    return made


@pytest.fixture(scope="module")
def sampler(model):
    return Sampler(model, most=40, jit_compile=False)


def sample(sampler, model, rows, count, seeds, sampling=None, last=2, **options):
    state = model.initial_state(rows)
    return sampler(np.full([rows], last), state, count, seeds, sampling or Sampling(), **options)


def test_a_rows_tokens_depend_on_its_seed_alone(model, sampler):
    together, _ = sample(sampler, model, 3, 20, SEEDS)
    other, _ = sample(sampler, model, 3, 20, [SEEDS[2], SEEDS[0], SEEDS[0]])
    assert_same_bits(other[:, 0], together[:, 2])
    assert_same_bits(other[:, 1], together[:, 0])
    assert_same_bits(other[:, 2], together[:, 0])
    assert not np.array_equal(together[:, 0], together[:, 1])


def test_tokens_in_two_calls_are_those_of_one(model, sampler):
    whole, end = sample(sampler, model, 3, 20, SEEDS)
    first, state = sample(sampler, model, 3, 7, SEEDS)
    second, last = sampler(first[-1], state, 13, SEEDS, begun=7)
    assert_same_bits(np.concatenate([first, second]), whole)
    assert_same_bits(last, end)


def test_state_and_tokens_are_those_of_the_model(model, sampler):
    """The most probable token of the model, step by step, with top_k of 1."""
    tokens, state = sample(sampler, model, 3, 6, SEEDS, Sampling(top_k=1))
    inputs, carried, expected = tf.constant([[2, 2, 2]]), model.initial_state(3), []
    for _ in range(6):
        before = carried
        logits, carried = model(inputs, before)
        inputs = tf.argmax(logits, axis=-1, output_type=tf.int32)
        expected.append(inputs[0].numpy())
    assert tokens.tolist() == np.stack(expected).tolist()
    assert_close(state, carried)


def test_frequencies_are_the_models(model):
    """One drawn token of 4,000 rows: within four standard deviations of softmax(logits / t)."""
    rows = 4000
    logits, _ = model(tf.constant([[2]]), model.initial_state(1))
    p = distribution(logits[0].numpy(), tf.zeros([1, 7], tf.bool), temperature=0.7)[0]
    wide = Sampler(model, most=1, jit_compile=False)
    seeds = np.stack([np.zeros(rows), np.arange(rows)], axis=1).astype(np.int32)
    tokens, _ = sample(wide, model, rows, 1, seeds, Sampling(temperature=0.7))
    found = np.bincount(tokens[0], minlength=7) / rows
    assert np.all(np.abs(found - p) < 4 * np.sqrt(p * (1 - p) / rows))


def test_one_program_for_all_settings(model, sampler):
    before = sampler.traces
    for settings in (Sampling(0.3), Sampling(top_k=2), Sampling(top_p=0.5, min_p=0.1)):
        sample(sampler, model, 3, 5, SEEDS, settings)
    sample(sampler, model, 3, 40, SEEDS)
    assert sampler.traces == max(before, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(count=41), r"count \(41\) must be at least 1 and below 41"),
        (dict(count=0), r"count \(0\)"),
        (dict(last=7), r"last \(\[7, 7, 7\]\) must be ids from 0 to 6"),
        (dict(seeds=[[1, 2]]), "seeds"),
    ],
)
def test_calls_that_cannot_be_are_refused(model, sampler, arguments, message):
    with pytest.raises(ValueError, match=message):
        sample(sampler, model, 3, **(dict(count=2, seeds=SEEDS) | arguments))
