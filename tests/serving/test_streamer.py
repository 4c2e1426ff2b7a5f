"""Law 10: streaming equals the forward pass; sessions are forked, marked, evicted to the bit."""

import threading

import numpy as np
import pytest
import tensorflow as tf

import tbptt
from tbptt import testing
from tbptt.serving.batcher import Batcher
from tbptt.serving.streamer import SessionError, Streamer
from tests.conftest import CORES, OPTIONS, make_core, make_inputs

SEEDS = tbptt.split_seed(tbptt.make_seed(8), 4)
IDS = tf.constant(np.random.default_rng(0).integers(0, 7, [11, 3]), tf.int32)


def make_model(readout="full"):
    core = tbptt.LSTM(3, 4, seed=SEEDS[0])
    of_kind = {
        "full": None,
        "chunked": tbptt.ChunkedSoftmax(4, 7, seed=SEEDS[1], chunk=3),
        "adaptive": tbptt.AdaptiveSoftmax(4, 7, cutoffs=[2, 4], seed=SEEDS[1]),
        "sampled": tbptt.SampledSoftmax(4, 7, samples=3, seed=SEEDS[1]),
    }
    return tbptt.LanguageModel(7, 3, core, seed=SEEDS[2], readout=of_kind[readout])


def make_streamer(model=None, **options):
    options = dict(capacity=4, chunk_sizes=(3, 1), batch_sizes=(1, 2), jit_compile=False) | options
    return Streamer(model or make_model(), **options)


@pytest.mark.parametrize("kind", [*CORES, *OPTIONS, "lstm-bfloat16"])
def test_streaming_equals_the_forward_pass_of_every_core(kind):
    """Law 10, whatever the chunks and whoever else is in the batch."""
    bfloat16 = kind == "lstm-bfloat16"
    core = make_core(kind, learned=True, **(dict(compute_dtype=tf.bfloat16) if bfloat16 else {}))
    model = tbptt.SequenceModel(core, 2, tbptt.squared_error, seed=SEEDS[0])
    testing.check_streaming(model, make_inputs(9, 3), precision="bfloat16" if bfloat16 else None)


@pytest.mark.parametrize("readout", ["full", "chunked", "adaptive", "sampled"])
def test_streaming_equals_the_forward_pass_of_every_readout(readout):
    """Law 10."""
    testing.check_streaming(make_model(readout), IDS, jit_compile=readout == "full")


def test_streaming_equals_the_forward_pass_of_an_encoder_with_a_decoder():
    """Law 10."""
    encoder, decoder = make_core("lstm"), tbptt.LSTM(1, 4, seed=SEEDS[1])
    model = tbptt.EncoderDecoder(
        encoder, decoder, 1, tbptt.squared_error, steps=2, seed=SEEDS[2], bypass=0
    )
    testing.check_streaming(model, make_inputs(5, 2))


def test_streaming_of_a_model_with_several_outputs():
    """Law 10."""

    class Two(tbptt.SequenceModel):
        def __call__(self, *arguments, **options):
            outputs, state = super().__call__(*arguments, **options)
            return {"value": outputs, "square": outputs[..., 0] ** 2}, state

    model = Two(make_core("gru"), 2, tbptt.squared_error, seed=SEEDS[0])
    testing.check_streaming(model, make_inputs(5, 2))


def test_a_streamer_that_forgets_is_found(monkeypatch):
    gather = Streamer._gather

    def forgets(streamer, sessions):
        return [0 * leaf for leaf in gather(streamer, sessions)]

    monkeypatch.setattr(Streamer, "_gather", forgets)
    with pytest.raises(testing.LawError, match=r"Law 10 .*the outputs of session 0"):
        testing.check_streaming(make_model(), IDS)


def test_a_session_on_disk_comes_back_to_the_bit(tmp_path):
    streamer = make_streamer()
    streamer.open("a/../b")  # no path
    streamer.feed("a/../b", [1, 2, 3])
    before = streamer.state("a/../b")
    streamer.evict("a/../b", tmp_path)
    assert [path.parent for path in tmp_path.iterdir()] == [tmp_path]
    assert streamer.sessions()[0].where.startswith(str(tmp_path))
    testing.assert_same_bits(streamer.state("a/../b"), before)
    expected = make_streamer()
    expected.open("x")
    expected.feed("x", [1, 2, 3])
    testing.assert_same_bits(streamer.feed("a/../b", [4]), expected.feed("x", [4]))
    assert not list(tmp_path.iterdir())  # it has a row again
    assert streamer.sessions()[0].where == "row"
    streamer.evict("a/../b", tmp_path)
    damaged = next(tmp_path.rglob("arrays.npz"))
    damaged.write_bytes(damaged.read_bytes()[:-40])
    with pytest.raises(SessionError, match="cannot be read back"):
        streamer.feed("a/../b", [4])


def test_nothing_is_traced_after_warming_up():
    streamer = make_streamer()
    streamer.warm_up([0])
    assert streamer.traces == 4
    for name in "abc":
        streamer.open(name)
    for length in range(1, 12):
        streamer.feed_many({"a": [0] * length, "b": [1] * (12 - length), "c": [2]})
    assert streamer.traces == 4


def test_sessions_say_how_old_and_where_they_are():
    streamer = make_streamer()
    streamer.open("a")
    streamer.open("b")
    streamer.feed("a", [1, 2])
    streamer.evict("b")
    b, a = streamer.sessions()
    assert (a.name, a.steps, a.where, a.bytes) == ("a", 2, "row", 2 * 4 * 4)
    assert (b.name, b.steps, b.where) == ("b", 0, "memory")
    assert 0 <= a.idle_seconds <= a.age_seconds


def test_a_bad_request_changes_nothing():
    streamer = make_streamer()
    for name in ("a", "b"):
        streamer.open(name)
        streamer.feed(name, [1, 2])
    before = [streamer.state(name) for name in "ab"]
    with pytest.raises(
        ValueError, match=r"session 'b' have the value 7 at step 0, but must be ids from 0 to 6"
    ):
        streamer.feed_many({"a": [1], "b": [7]})
    with pytest.raises(SessionError, match="no session 'c'"):
        streamer.feed_many({"a": [1], "c": [1]})
    testing.assert_same_bits([streamer.state(name) for name in "ab"], before)


def test_values_are_checked_for_the_session_that_sent_them():
    streamer = make_streamer(tbptt.SequenceModel(
        make_core("lstm"), 2, tbptt.squared_error, seed=SEEDS[0]
    ))  # fmt: skip
    for name in "ab":
        streamer.open(name)
    good, bad = np.zeros([2, 3], np.float32), np.float32([[0, 0, 0], [0, np.inf, 0]])
    with pytest.raises(ValueError, match=r"'b' have the value inf at step 1, but must be f"):
        streamer.feed_many({"a": good, "b": bad})
    assert streamer.feed_many({"a": good, "b": good})["b"].shape == (2, 2)
    with pytest.raises(ValueError, match=r"'b' are float32\[N, 4\], but those of .*\[N, 3"):
        streamer.feed_many({"a": good, "b": np.zeros([2, 4])})


BAD = {
    "empty": (lambda s: s.feed("a", []), r"shapes \[\[0\]\]"),
    "scalar": (lambda s: s.feed("a", 3), r"must be \[N, \.\.\.\]"),
    "negative id": (lambda s: s.feed("a", [-1]), "have the value -1 at step 0, but must be ids"),
    "text": (lambda s: s.feed("a", ["x"]), "they must be numbers"),
    "number": (lambda s: s.feed("a", [0.5]), "have type float64, but must be ids, whole numbers"),
    "two kinds": (lambda s: s.feed_many({"a": [1], "b": [[1]]}), "All chunks must have the same"),
    "huge id": (
        lambda s: s.feed("a", [2**40]),
        "the value 1099511627776 at step 0, but must be ids from 0 to 6",
    ),
    "unknown": (lambda s: s.feed("z", [1]), "There is no session 'z'; 2 are open. Open it"),
    "open twice": (lambda s: s.open("a"), "There is a session 'a' already"),
    "no name": (lambda s: s.open(""), r"must be a string of 1 to 200"),
    "name of a number": (lambda s: s.open(3), r"session \(3\) must be a string"),
    "long name": (lambda s: s.open("x" * 201), "1 to 200 characters"),
    "no mark": (lambda s: s.rollback("a", "m"), r"no mark 'm'. It has \[\]"),
    "fork to itself": (lambda s: s.fork("a", "a"), "There is a session 'a' already"),
    "other state": (lambda s: s.set_state("a", tf.zeros([1, 4])), "state"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_calls_are_answered(case):
    call, message = BAD[case]
    streamer = make_streamer()
    for name in "ab":
        streamer.open(name)
    for _ in range(2):  # a bad call that comes first spoils nothing for good ones
        before = streamer.state("a")
        with pytest.raises((ValueError, TypeError), match=message):
            call(streamer)
        testing.assert_same_bits(streamer.state("a"), before)
        assert streamer.feed("a", [1]).shape == (1, 7)
    assert streamer.feed_many({}) == {}


def test_a_full_streamer_says_what_to_do():
    streamer = make_streamer(capacity=1)
    streamer.open("a")
    streamer.mark("a", "begin")
    streamer.feed("a", [1, 2])
    with pytest.raises(SessionError, match=r"1 more rows are needed, but 0 of 1 are free\. Close"):
        streamer.open("b")
    streamer.evict("a")
    streamer.open("b")
    with pytest.raises(SessionError, match="0 of 1 are free"):
        streamer.feed("a", [1])  # b has the only row
    with pytest.raises(SessionError, match="0 of 1 are free"):
        streamer.rollback("a", "begin")
    assert {info.name: info.steps for info in streamer.sessions()} == {"a": 2, "b": 0}
    streamer.close("b")
    assert streamer.feed("a", [1]).shape == (1, 7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(capacity=0), r"capacity \(0\) must be at least 1"),
        (dict(chunk_sizes=(8, 2)), "must have 1 among them"),
        (dict(batch_sizes=()), r"batch_sizes \(\[\]\) must be whole"),
        (dict(chunk_sizes=(1, 0)), r"chunk_sizes \(\[1, 0\]\)"),
    ],
)
def test_sizes_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_streamer(**options)


def test_threads_share_batches_and_keep_each_session_in_order():
    """Eight clients at once: each gets what its own stream gives alone."""
    model = make_model()
    streamer = make_streamer(model, capacity=8, batch_sizes=(1, 8))
    streams = np.random.default_rng(1).integers(0, 7, [8, 12])
    found = {}
    with Batcher(streamer, wait_ms=5.0, max_batch=8) as batcher:

        def client(number):
            streamer.open(str(number))
            futures = [batcher.submit(str(number), [token]) for token in streams[number]]
            found[number] = np.concatenate([future.result() for future in futures])

        threads = [threading.Thread(target=client, args=[n]) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        bad = batcher.submit("0", [99])
        good = batcher.submit("1", [3])
        assert good.result().shape == (1, 7)
        with pytest.raises(ValueError, match="have the value 99"):
            bad.result()
    expected, _ = model(tf.constant(streams.T, tf.int32), model.initial_state(8))
    for number, outputs in found.items():
        testing.assert_close(outputs, expected[:, number], law=10)
    with pytest.raises(RuntimeError, match="closed"):
        batcher.submit("0", [1])
