"""Beam search against all continuations, against greedy search, and against a search by hand."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

import tbptt
from tbptt.serving.beam import beam_search
from tbptt.serving.streamer import SessionError, Streamer
from tbptt.testing import assert_close, assert_same_bits

STOP, LENGTH, PROMPT = 2, 3, [1, 3, 0]


@pytest.fixture(scope="module")
def model():
    seeds = tbptt.split_seed(tbptt.make_seed(4), 2)
    made = tbptt.LanguageModel(4, 3, tbptt.LSTM(3, 8, seed=seeds[0]), seed=seeds[1])
    made.readout.w.assign(8.0 * made.readout.w)
    return made


@pytest.fixture(scope="module")
def streamer(model):
    sizes = dict(chunk_sizes=(3, 1), batch_sizes=(1, 4, 16), jit_compile=False)
    return Streamer(model, capacity=20, **sizes)


@pytest.fixture(scope="module")
def log_p(model):
    """The log probabilities of the next token after each sequence of up to two tokens."""
    found = {}
    for n in range(LENGTH):
        every = list(itertools.product(range(4), repeat=n))
        ids = np.array([[*PROMPT, *tokens] for tokens in every]).T
        logits, _ = model(tf.constant(ids), model.initial_state(len(every)))
        found |= dict(zip(every, tf.nn.log_softmax(logits[-1]).numpy(), strict=True))
    return found


def total(log_p, tokens):
    return sum(float(log_p[tokens[:k]][tokens[k]]) for k in range(len(tokens)))


def by_hand(log_p, width, stop, penalty):
    """The definition, without an early end."""
    live, done = [()], []
    for _ in range(LENGTH):
        longer = [(*tokens, token) for tokens in live for token in range(4)]
        longer = sorted(longer, key=lambda tokens: -total(log_p, tokens))[:width]
        done += [tokens for tokens in longer if tokens[-1] in stop]
        live = [tokens for tokens in longer if tokens[-1] not in stop]
    return sorted(done + live, key=lambda tokens: -total(log_p, tokens) / len(tokens) ** penalty)


@pytest.mark.parametrize("penalty", [0.0, 0.7, 2.0])
@pytest.mark.parametrize("stop", [(), (STOP,), (0, STOP)])
@pytest.mark.parametrize("width", [1, 2, 3, 64])
def test_hypotheses_are_those_of_the_definition(streamer, log_p, width, stop, penalty):
    found = beam_search(streamer, PROMPT, LENGTH, width=width, stop=stop, length_penalty=penalty)
    expected = by_hand(log_p, width, stop, penalty)[:width]
    assert [one.tokens for one in found] == expected
    assert_close(
        np.float32([one.log_probability for one in found]),
        np.float32([total(log_p, tokens) for tokens in expected]),
    )
    for one in found:
        assert one.ended == (one.tokens[-1] in stop)
        assert one.score == pytest.approx(one.log_probability / len(one.tokens) ** penalty)
    assert not streamer.sessions()


def test_a_beam_as_wide_as_all_finds_every_continuation(streamer, log_p):
    """All sequences of three tokens, and the shorter ones that end with the stop token."""
    every = [t for n in (1, 2, 3) for t in itertools.product(range(4), repeat=n)]
    every = [t for t in every if STOP not in t[:-1] and (len(t) == 3 or t[-1] == STOP)]
    found = beam_search(streamer, PROMPT, LENGTH, width=64, stop=[STOP])
    assert {one.tokens for one in found} == set(every)
    assert np.exp([one.log_probability for one in found]).sum() == pytest.approx(1.0, abs=1e-5)
    assert found[0].tokens == max(every, key=lambda tokens: total(log_p, tokens))


def test_a_beam_of_one_takes_the_most_probable_token(streamer, log_p):
    greedy = ()
    for _ in range(LENGTH):
        greedy += (int(np.argmax(log_p[greedy])),)
    (found,) = beam_search(streamer, PROMPT, LENGTH, width=1)
    assert found.tokens == greedy


def test_a_session_goes_on_in_forks_and_stays_as_it_is(streamer):
    streamer.open("mine")
    streamer.feed("mine", PROMPT[:2])
    before = streamer.state("mine")
    found = beam_search(streamer, PROMPT[2:], LENGTH, session="mine")
    assert [one.tokens for one in found] == [
        one.tokens for one in beam_search(streamer, PROMPT, LENGTH)
    ]
    assert_same_bits(streamer.state("mine"), before)
    assert [info.name for info in streamer.sessions()] == ["mine"]
    streamer.close("mine")


def test_an_error_leaves_no_session(streamer, model, monkeypatch):
    feed_many = streamer.feed_many
    calls = []

    def fails(inputs):
        calls.append(len(inputs))
        if len(calls) == 3:
            raise RuntimeError("out of luck")
        return feed_many(inputs)

    monkeypatch.setattr(streamer, "feed_many", fails)
    with pytest.raises(RuntimeError, match="out of luck"):
        beam_search(streamer, PROMPT, 5, width=3)
    assert calls == [1, 3, 3]
    assert not streamer.sessions()
    monkeypatch.undo()
    with pytest.raises(ValueError, match="have the value 4 at step 1, but must be ids from 0 to 3"):
        beam_search(streamer, [1, 4], LENGTH)
    assert not streamer.sessions()
    small = Streamer(model, capacity=2, batch_sizes=(1, 2), jit_compile=False)
    with pytest.raises(SessionError, match=r"1 more rows are needed, but 0 of 2 are free"):
        beam_search(small, PROMPT, LENGTH, width=3)
    assert not small.sessions()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(prompt=[]), r"shapes \[\[0\]\]"),
        (dict(length=0), r"length \(0\) must be at least 1"),
        (dict(width=0), r"width \(0\) must be at least 1"),
        (dict(length_penalty=-1.0), r"length_penalty \(-1.0\) must be at least 0"),
        (dict(stop=[4]), "stop has 4, but must hold ids from 0 to 3"),
        (dict(session="nobody"), "no session 'nobody'"),
    ],
)
def test_searches_that_cannot_be_are_refused(streamer, arguments, message):
    with pytest.raises(ValueError, match=message):
        beam_search(streamer, **(dict(prompt=[1], length=2) | arguments))
    assert not streamer.sessions()
