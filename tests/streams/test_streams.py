"""What every stream promises under every truncation: pure, continuous, every target once."""

import subprocess
import sys
import zlib

import numpy as np
import pytest
import tensorflow as tf

import tbptt
from tbptt import testing
from tbptt.layers.dropout import dropout
from tbptt.streams.segments import Segments
from tests.conftest import make_core

VOCABULARY, ROWS, STEPS = 300, 3, 6
RNG = np.random.default_rng(0)
LENGTHS = [3, 9, 2, 2, 17, 30, 5, 2, 11, 4]
TOKENS = np.arange(1, 1 + sum(LENGTHS))  # each once, so a target can be told by its value
DOCUMENTS = Segments(TOKENS, np.cumsum(LENGTHS))
FRAMES = Segments(TOKENS[:, None] * np.ones([1, 2]), np.cumsum(LENGTHS))
DAYS = np.datetime64("2020-01-01") + np.delete(np.arange(91), [20, 21, 40, 60, 61, 62])
SERIES = tbptt.Series(
    np.where(RNG.random([85, 2]) < 0.05, np.nan, TOKENS[:85, None]), ("a", "b"), DAYS
)
SCALE = tbptt.Standardizer(np.zeros(2), np.ones(2))

STREAMS = {
    "contiguous": lambda **k: tbptt.ContiguousStream(
        TOKENS, vocabulary_size=VOCABULARY, tail="pad", **k
    ),
    "contiguous-drop": lambda **k: tbptt.ContiguousStream(TOKENS, vocabulary_size=VOCABULARY, **k),
    "contiguous-offset": lambda **k: tbptt.ContiguousStream(
        TOKENS, vocabulary_size=VOCABULARY, tail="pad", shuffle="offset", **k
    ),
    "contiguous-rotate": lambda **k: tbptt.ContiguousStream(
        TOKENS, vocabulary_size=VOCABULARY, tail="pad", shuffle="rotate", **k
    ),
    "documents": lambda **k: tbptt.DocumentStream(DOCUMENTS, vocabulary_size=VOCABULARY, **k),
    "documents-boundary": lambda **k: tbptt.DocumentStream(
        DOCUMENTS, vocabulary_size=VOCABULARY, boundary=0, **k
    ),
    "documents-whole": lambda **k: tbptt.DocumentStream(
        DOCUMENTS, vocabulary_size=VOCABULARY, whole=True, **k
    ),
    "frames-next": lambda **k: tbptt.FrameStream(FRAMES, **k),
    "frames-labels": lambda **k: tbptt.FrameStream(FRAMES, TOKENS, **k),
    "frames-sequences": lambda **k: tbptt.FrameStream(FRAMES, TOKENS[: len(LENGTHS)], **k),
    "series": lambda **k: tbptt.SeriesStream([SERIES, SERIES], SCALE, **k),
    "series-ahead": lambda **k: tbptt.SeriesStream(
        [SERIES], SCALE, horizon=3, targets=["b"], shuffle=True, **k
    ),
    "series-path": lambda **k: tbptt.SeriesStream([SERIES], SCALE, horizon=2, path=True, **k),
}
TRUNCATIONS = {
    "plain": dict(),
    "stride": dict(stride=2),
    "stride-not-a-divisor": dict(stride=4),
    "burn-in": dict(stride=3, burn_in=2),
    "jitter": dict(jitter=1.0),
    "cut": dict(cut=0.3),
    "drop-state": dict(drop_state=0.3),
    "everything": dict(stride=2, burn_in=1, cut=0.3, drop_state=0.2),
}
every_stream = pytest.mark.parametrize("stream", STREAMS)
every_truncation = pytest.mark.parametrize("truncation", TRUNCATIONS)


def make(stream, truncation="plain", rows=ROWS, **options):
    return STREAMS[stream](
        rows=rows, truncation=tbptt.Truncation(STEPS, **TRUNCATIONS[truncation]), **options
    )


def new_steps(stream, epoch=0):
    """Inputs, targets, weight and reset of the steps that are new, a list of `[N, ...]` a row."""
    count = stream.windows_per_epoch
    windows, _ = stream.windows(tbptt.Cursor(epoch, 0), count)
    weight = windows.weight if windows.weight is not None else np.ones(windows.targets.shape[:3])
    reset = (
        np.zeros(weight.shape, bool)
        if windows.controls.reset is None
        else windows.controls.reset.copy()
    )
    back = stream.truncation.look_back
    reset[0, back] |= windows.start[0]  # an epoch's start, as it may be said in either way
    lengths = [stream.truncation.nominal_length] * count
    lengths = lengths if windows.controls.advance is None else windows.controls.advance
    fields = (windows.inputs, windows.targets, weight, reset)
    return [
        np.concatenate([part[k, back : back + n] for k, n in enumerate(lengths)]) for part in fields
    ]


def assert_equal_windows(a, b):
    for x, y in zip(tf.nest.flatten(a), tf.nest.flatten(b), strict=True):
        assert (x is None) == (y is None)
        if x is not None:
            assert x.dtype == y.dtype
            np.testing.assert_array_equal(x, y)


@every_stream
@every_truncation
def test_windows_are_a_pure_function_of_the_cursor(stream, truncation):
    """Any cursor, in any order, one by one or together: the same windows."""
    testing.check_cursor(make(stream, truncation))


@every_stream
@pytest.mark.parametrize("truncation", ["plain", "jitter", "everything"])
def test_some_rows_alone_are_those_of_all(stream, truncation):
    """Law 4: what one process of many reads, random cuts and dropped states included."""
    testing.check_stream_rows(make(stream, truncation))


def checksum(windows):
    parts = [part for part in tf.nest.flatten(windows) if part is not None]
    return zlib.crc32(b"".join(part.tobytes() for part in parts))


def test_windows_are_the_same_in_another_process():
    program = (
        "from tests.streams.test_streams import *\n"
        "window, _ = make('documents', 'everything').windows(tbptt.Cursor(3, 2), 4)\n"
        "print(checksum(window))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, text=True
    )
    window, _ = make("documents", "everything").windows(tbptt.Cursor(3, 2), 4)
    assert int(done.stdout) == checksum(window)


@every_stream
@every_truncation
def test_windows_continue_each_other_or_start_anew(stream, truncation):
    """Law 11, on the host: the same check as in the loop."""
    made = make(stream, truncation)
    testing.check_offsets(made)
    windows, _ = made.windows(tbptt.Cursor(), 2 * made.windows_per_epoch + 1)
    for epoch in range(3):
        assert windows.start[epoch * made.windows_per_epoch].all()


@every_stream
@every_truncation
def test_truncation_changes_no_data(stream, truncation):
    """What is new in the windows, one after another, is each row as it is without truncation."""
    for epoch in (0, 1):
        plain = new_steps(make(stream), epoch)
        cut = new_steps(make(stream, truncation), epoch)
        if stream == "contiguous-drop":  # drops less where windows advance by less
            steps = min(len(plain[0]), len(cut[0]))
            plain, cut = [p[:steps] for p in plain], [c[:steps] for c in cut]
        steps = min(len(plain[0]), len(cut[0]))
        for a, b in zip(plain, cut, strict=True):
            np.testing.assert_array_equal(a[:steps], b[:steps])
            assert not plain[2][steps:].any()
            assert not cut[2][steps:].any()


@pytest.mark.parametrize("stream", [s for s in STREAMS if not s.startswith("series")])
@every_truncation
def test_every_target_is_scored_once(stream, truncation):
    made = make(stream, truncation)
    for epoch in (0, 1):
        _, targets, weight, _ = new_steps(made, epoch)
        windows, _ = made.windows(tbptt.Cursor(epoch, 0), made.windows_per_epoch)
        if windows.weight is not None:  # and no step that is not new is scored
            assert windows.weight.sum() == weight.sum()
        scored = targets[weight > 0]
        scored = np.sort(scored[:, 0] if scored.ndim == 2 else scored)
        firsts = np.cumsum([0, *LENGTHS[:-1]])
        expected = {
            "contiguous": TOKENS[1:],
            "contiguous-rotate": TOKENS[1:],
            "documents": np.delete(TOKENS, firsts),
            "documents-whole": np.delete(TOKENS, firsts),
            "documents-boundary": np.sort([*[0] * len(LENGTHS), *TOKENS]),
            "frames-next": np.delete(TOKENS, firsts),
            "frames-labels": TOKENS,
            "frames-sequences": TOKENS[: len(LENGTHS)],
        }
        if stream in expected:
            np.testing.assert_array_equal(scored, expected[stream])
        else:  # up to a window a row is left out
            assert len(np.unique(scored)) == len(scored) > len(TOKENS) - (ROWS + 1) * STEPS


class AnyModel(tf.Module):
    """Takes whatever comes in."""

    def __init__(self, dropout_rate=0.0):
        super().__init__()
        self.core = make_core("lstm")
        self.dropout_rate = dropout_rate

    def initial_state(self, rows):
        return self.core.initial_state(rows)

    def __call__(self, inputs, state, controls=None, *, training=False, seed=None):
        x = tf.cast(inputs, tf.float32)
        x = x[..., None] if x.shape.rank == 2 else x
        x = tf.reduce_mean(x, axis=-1, keepdims=True) * tf.ones([3]) / 100.0
        x = dropout(x, self.dropout_rate if training else 0.0, seed)
        return self.core(x, state, controls or tbptt.Controls())

    def loss(self, window, state, *, training, seed):
        outputs, state = self(window.inputs, state, window.controls, training=training, seed=seed)
        return tbptt.WindowLoss(any_loss(outputs, window.targets)), state


def any_loss(outputs, targets):
    """How far the outputs are from the targets' mean, small numbers all."""
    targets = tf.cast(targets, tf.float32) / 100.0
    while targets.shape.rank > 2:
        targets = tf.reduce_mean(targets, axis=-1)
    return tf.reduce_sum((outputs - targets[..., None]) ** 2, axis=-1)


def test_rows_of_short_documents_are_full():
    lengths = np.random.default_rng(0).integers(3, 16, 3000)
    documents = Segments(np.ones([lengths.sum()], np.int64), np.cumsum(lengths))
    for whole in (False, True):
        stream = tbptt.DocumentStream(
            documents, rows=32, window_length=16, vocabulary_size=2, boundary=0, whole=whole
        )
        assert stream.utilisation > 0.98
        windows, _ = stream.windows(tbptt.Cursor(), stream.windows_per_epoch)
        assert windows.weight.mean() == pytest.approx(stream.utilisation)


def test_whole_documents_stay_whole():
    made = make("documents-whole")
    inputs, _, weight, reset = new_steps(made)
    begins = np.concatenate([[0], DOCUMENTS.ends[:-1]])
    for row in range(ROWS):
        used = weight[:, row] > 0
        starts = inputs[used & reset[:, row], row]
        assert set(starts) <= set(TOKENS[begins])
        np.testing.assert_array_equal(reset[used, row], np.isin(inputs[used, row], TOKENS[begins]))


def test_epochs_are_shuffled_by_the_seed():
    first, second = (new_steps(make("documents"), epoch)[0] for epoch in (0, 1))
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, new_steps(make("documents"))[0])
    assert not np.array_equal(first, new_steps(make("documents", seed=1))[0])


def test_jittered_lengths():
    truncation = tbptt.Truncation(80, jitter=5)
    lengths = truncation.lengths(100_000, truncation.windows(100_000, whole=False), RNG)
    assert lengths.sum() == 100_000
    assert lengths.min() >= 5
    assert lengths.max() <= 80
    assert 0.02 < np.mean(lengths < 52) < 0.08  # one in twenty is about half as long
    assert 4 < np.std(lengths[lengths > 52]) < 6
    for row_length, window_length, jitter in ((7, 3, 1), (1, 30, 2), (100, 30, 14), (31, 10, 4.5)):
        odd = tbptt.Truncation(window_length, jitter=jitter)
        lengths = odd.lengths(row_length, odd.windows(row_length, whole=False), RNG)
        assert lengths.sum() == row_length
        assert lengths.min() >= 1
        assert lengths.max() <= window_length


def test_jitter_scales_the_update():
    made = make("contiguous", "jitter")
    windows, _ = made.windows(tbptt.Cursor(), made.windows_per_epoch)
    np.testing.assert_allclose(windows.update_scale, windows.controls.advance / 4)


def test_cuts_are_unbiased_scales():
    made = tbptt.ContiguousStream(
        np.arange(30_001) % 9, rows=10, vocabulary_size=9, truncation=tbptt.Truncation(10, cut=0.25)
    )
    scale = made.windows(tbptt.Cursor(), 100)[0].controls.gradient_scale
    assert set(np.unique(scale)) == {0.0, np.float32(1 / 0.75)}
    assert abs(scale.mean() - 1) < 0.03


def test_dropped_states_start_anew():
    made = make("contiguous", "drop-state")
    windows, _ = made.windows(tbptt.Cursor(), made.windows_per_epoch)
    assert 0.1 < windows.start[1:].mean() < 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(window_length=0), r"window_length \(0\) must be at least 1"),
        (dict(window_length=6, stride=7), r"stride \(7\) must be at least 1 and below 7"),
        (dict(window_length=6, stride=0), r"stride \(0\)"),
        (dict(window_length=6, stride=4, burn_in=3), r"burn_in \(3\) must be at most .*stride=3"),
        (dict(window_length=6, burn_in=1), r"burn_in \(1\) must be at most"),
        (dict(window_length=6, cut=1.0), r"cut \(1.0\) must be at least 0.0 and below 1.0"),
        (dict(window_length=6, drop_state=-0.1), r"drop_state \(-0.1\)"),
        (dict(window_length=6, stride=3, jitter=1.0), "Use one of them"),
        (dict(window_length=6, jitter=3.0), "Use a window_length above 6"),
    ],
)
def test_truncation_that_makes_no_sense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        tbptt.Truncation(**options)


def test_window_length_or_truncation_is_needed():
    for both in (dict(), dict(window_length=3, truncation=tbptt.Truncation(3))):
        with pytest.raises(ValueError, match="Give exactly one of them"):
            tbptt.ContiguousStream(TOKENS, rows=1, vocabulary_size=VOCABULARY, **both)


@pytest.mark.parametrize("stream", ["documents", "documents-whole", "frames-next"])
def test_more_rows_than_segments_are_refused(stream):
    with pytest.raises(ValueError, match=r"rows \(500\) must be at most the number of"):
        make(stream, rows=500)
