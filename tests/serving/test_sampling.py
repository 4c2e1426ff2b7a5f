"""Sampling: each setting by hand, one program, and a row's tokens whatever its batch."""

import numpy as np
import pytest
import tensorflow as tf

import tbptt
from tbptt.serving.drawing import draw, probabilities, uniforms
from tbptt.serving.sampling import Sampler, Sampling
from tbptt.state import take_rows
from tbptt.testing import assert_close, assert_same_bits

SEEDS = tbptt.split_seed(tbptt.make_seed(8), 3)
LOGITS = np.log(np.float32([[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]]))
NONE_SEEN = tf.zeros([2, 4], tf.bool)


def distribution(logits=LOGITS, seen=NONE_SEEN, **settings):
    """The probabilities of tokens 0 to V - 1."""
    return probabilities(tf.constant(logits), seen, Sampling(**settings).as_tensors()).numpy()


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


def test_cuts_are_those_of_sorted_tokens():
    """Of random distributions, many of whose tokens are equally probable, row by row."""
    rng = np.random.default_rng(3)
    logits = np.log(rng.integers(1, 6, [200, 40]).astype(np.float32))
    columns = {
        "top_k": rng.integers(0, 12, 200),
        "top_p": np.where(rng.random(200) < 0.2, 1.0, rng.uniform(0.01, 1.0, 200)),
        "min_p": np.where(rng.random(200) < 0.5, 0.0, rng.random(200)),
    }
    settings = {name: tf.constant(x[:, None], tf.float32) for name, x in columns.items()}
    settings["top_k"] = tf.cast(settings["top_k"], tf.int32)
    ones = tf.ones([200, 1])
    settings |= {"temperature": ones, "repetition_penalty": ones}
    found = probabilities(tf.constant(logits), tf.zeros([200, 40], tf.bool), settings).numpy()
    for row, p in enumerate(np.exp(logits.astype(np.float64))):
        p /= p.sum()
        order = np.argsort(-p, kind="stable")
        ranked, (k, q, m) = p[order], (x[row] for x in columns.values())
        before = np.cumsum(ranked) - ranked
        if np.abs(before - q).min() < 1e-6 or np.abs(ranked - m * ranked[0]).min() < 1e-6:
            continue  # rounding decides
        kept = (np.arange(40) < k) | (k == 0)
        kept &= (before < q) | (q >= 1)
        kept &= ranked >= m * ranked[0]
        kept[0] = True
        expected = np.zeros(40)
        expected[order[kept]] = ranked[kept] / ranked[kept].sum()
        np.testing.assert_allclose(found[row], expected, rtol=1e-5, err_msg=f"{row} {k} {q} {m}")


def test_a_draw_inverts_the_distribution():
    p = tf.constant([[0.5, 0.0, 0.3, 0.2]] * 5 + [[0.6, 0.4, 0.0, 0.0]])
    drawn = draw(p, tf.constant([0.0, 0.49, 0.51, 0.79, 0.81, 0.9999999]))
    assert drawn.numpy().tolist() == [0, 0, 2, 2, 3, 1]


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


@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_rows_bits_are_the_same_whoever_else_is_drawn(jit_compile):
    """1, 2, 5, 8 and 11 rows, in other places: tokens and states of a row alone, to the bit."""
    core = tbptt.LSTM(8, 40, seed=SEEDS[0])
    model = tbptt.LanguageModel(30, 8, core, seed=SEEDS[1])
    rng = np.random.default_rng(0)
    state = tuple(tf.constant(rng.normal(size=[11, 40]), tf.float32) for _ in range(2))
    state = tf.nest.pack_sequence_as(model.initial_state(1), state)
    last, seeds = rng.integers(0, 30, 11), rng.integers(0, 1000, [11, 2])
    sampler = Sampler(model, most=16, jit_compile=jit_compile)

    def drawn(rows):
        return sampler(last[rows], take_rows(state, rows), 16, seeds[rows], stop=[3])

    alone = [drawn(np.array([row])) for row in range(11)]
    for count in (2, 5, 8, 11):
        rows = rng.permutation(11)[:count]
        tokens, after = drawn(rows)
        for place, row in enumerate(rows):
            assert_same_bits(tokens[:, place], alone[row][0][:, 0])
            assert_same_bits(take_rows(after, [place]), alone[row][1])
    assert sampler.traces == 1


def test_a_row_ends_at_a_stop_token_and_stays_there(model, sampler):
    seeds = [[0, k] for k in range(6)]
    free, _ = sample(sampler, model, 6, 30, seeds)
    ended, state = sample(sampler, model, 6, 30, seeds, stop=[1, 5])
    ends = []
    for row in range(6):
        hits = np.flatnonzero(np.isin(free[:, row], [1, 5]))
        ends.append(int(hits[0]) if len(hits) else 29)
        assert_same_bits(ended[: ends[-1] + 1, row], free[: ends[-1] + 1, row])
        assert set(ended[ends[-1] + 1 :, row]) <= {-1}
    assert len({*ends} - {29}) > 1  # rows that end at different steps
    for row in range(6):  # the state is the one before the token that ended the row
        _, before = sampler(np.array([2]), model.initial_state(1), ends[row] + 1, [seeds[row]])
        assert_same_bits(take_rows(state, [row]), before)
    more, same = sampler(np.where(np.array(ends) < 29, -1, ended[-1]), state, 3, seeds)
    for row in np.flatnonzero(np.array(ends) < 29):
        assert more[:, row].tolist() == [-1] * 3
        assert_same_bits(take_rows(same, [row]), take_rows(state, [row]))


def test_several_samples_of_one_state_are_those_of_copies(model, sampler):
    one, _ = sampler(np.array([2]), model.initial_state(1), 9, SEEDS)
    copies, _ = sample(sampler, model, 3, 9, SEEDS)
    assert_same_bits(one, copies)


@pytest.mark.parametrize("length", [1, 4, 150])
def test_a_prompt_is_read_and_written_on_from(model, sampler, length):
    """Whatever the pieces; the penalty counts the prompt; the most probable tokens by hand."""
    prompt = np.random.default_rng(1).integers(0, 7, length)
    settings = Sampling(temperature=0.7, repetition_penalty=1.3)
    whole = sampler.sample(prompt, 30, SEEDS, settings, stop=[6])
    pieces = list(sampler.write(prompt, 30, SEEDS, settings, stop=[6], piece=7))
    assert [len(piece) for piece in pieces] == [7, 7, 7, 7, 2]
    assert_same_bits(np.concatenate(pieces), whole)
    greedy = sampler.sample(prompt, 5, SEEDS[:1], Sampling(top_k=1))[:, 0]
    read = np.concatenate([prompt, greedy])[:-1]
    logits, _ = model(tf.constant(read)[:, None], model.initial_state(1))
    assert greedy.tolist() == np.argmax(logits[length - 1 :, 0], axis=-1).tolist()


def test_a_model_need_not_say_how_many_tokens_it_knows(model, sampler):
    class Own:
        initial_state = staticmethod(model.initial_state)

        def __call__(self, ids, state):
            return model(ids, state)

    found = Sampler(Own(), most=40, jit_compile=False).sample([1, 2], 5, SEEDS)
    assert_same_bits(found, sampler.sample([1, 2], 5, SEEDS))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(prompt=[]), r"length of the prompt \(0\) must be at least 1"),
        (dict(prompt=[1, 7]), "prompt has 7, but must hold ids from 0 to 6"),
        (dict(prompt=[0.5, 1]), "prompt has 0.5"),
        (dict(length=0), r"length \(0\) must be at least 1"),
        (dict(piece=41), r"piece \(41\)"),
        (dict(stop=[9]), "stop has 9"),
    ],
)
def test_prompts_that_cannot_be_are_refused(sampler, arguments, message):
    with pytest.raises(ValueError, match=message):
        sampler.write(**(dict(prompt=[1], length=2, seeds=SEEDS) | arguments))


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
    wide = Sampler(model, most=1, rows=rows, jit_compile=False)
    seeds = np.stack([np.zeros(rows), np.arange(rows)], axis=1).astype(np.int32)
    tokens, _ = sample(wide, model, rows, 1, seeds, Sampling(temperature=0.7))
    found = np.bincount(tokens[0], minlength=7) / rows
    assert np.all(np.abs(found - p) < 4 * np.sqrt(p * (1 - p) / rows))


def test_one_program_for_all_settings(model, sampler):
    before = sampler.traces
    for settings in (Sampling(0.3), Sampling(top_k=2), Sampling(top_p=0.5, min_p=0.1)):
        sample(sampler, model, 3, 5, SEEDS, settings)
        sample(sampler, model, 3, 5, SEEDS, settings, stop=[1, 2])
    sample(sampler, model, 3, 40, SEEDS)
    sample(sampler, model, 20, 4, np.repeat(SEEDS, [7, 7, 6], axis=0))
    assert sampler.traces == max(before, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(count=41), r"count \(41\) must be at least 1 and below 41"),
        (dict(count=0), r"count \(0\)"),
        (dict(last=7), r"last \(\[7, 7, 7\]\) must be ids from 0 to 6"),
        (dict(seeds=[[1, 2]]), "There are 1 seeds, but last has 3 ids"),
        (dict(seeds=[[1, 2]] * 2, last=2), "There are 2 seeds, but last has 3 ids"),
        (dict(seeds=[1, 2]), r"seeds has shape \[2\]"),
        (dict(stop=[7]), "stop has 7, but must hold ids from 0 to 6"),
        (dict(stop=[-1]), "stop has -1"),
        (dict(seen=np.zeros([3, 4], bool)), "seen"),
    ],
)
def test_calls_that_cannot_be_are_refused(model, sampler, arguments, message):
    with pytest.raises(ValueError, match=message):
        sample(sampler, model, 3, **(dict(count=2, seeds=SEEDS) | arguments))
