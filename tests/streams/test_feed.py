"""Feeds hand out what the stream holds, whatever was asked before."""

import numpy as np
import pytest

import tbptt
from tbptt.testing import assert_same_bits
from tests.streams.test_contiguous import make


def windows_of(chunk):
    held = len(chunk.windows.inputs)
    return [chunk.windows.at((int(chunk.first) + k) % held) for k in range(int(chunk.count))]


@pytest.mark.parametrize("feed", [tbptt.ResidentFeed, tbptt.PrefetchFeed])
def test_chunks_are_the_windows_of_the_stream(feed):
    stream = make()
    reader = feed(stream, 4)
    cursor = tbptt.Cursor()
    for count in (4, 1, 3, 4, 4, 2):
        expected, following = stream.windows(cursor, count)
        chunk, cursor = reader.take(cursor, count)
        assert cursor == following
        for k, window in enumerate(windows_of(chunk)):
            assert_same_bits(
                [window.inputs, window.targets, window.start, window.offset],
                [expected.inputs[k], expected.targets[k], expected.start[k], expected.offset[k]],
            )
    again, _ = reader.take(tbptt.Cursor(0, 1), 1)  # a jump back
    assert_same_bits(
        windows_of(again)[0].inputs, stream.windows(tbptt.Cursor(0, 1), 1)[0].inputs[0]
    )


def test_small_streams_stay_on_the_device_and_large_ones_do_not():
    assert isinstance(tbptt.open_feed(make(), 2), tbptt.ResidentFeed)
    assert isinstance(tbptt.open_feed(make(), 2, resident_bytes=100), tbptt.PrefetchFeed)


def test_epochs_that_differ_cannot_stay_on_the_device():
    stream = make()
    stream.epochs_alike = False
    assert isinstance(tbptt.open_feed(stream, 2), tbptt.PrefetchFeed)
    with pytest.raises(ValueError, match="whose epochs differ"):
        tbptt.ResidentFeed(stream, 2)


@pytest.mark.parametrize("feed", [tbptt.ResidentFeed, tbptt.PrefetchFeed])
def test_counts_that_do_not_fit_are_refused(feed):
    with pytest.raises(ValueError, match=r"windows_per_call \(0\) must be at least 1"):
        feed(make(), 0)
    with pytest.raises(ValueError, match=r"count \(5\) must be at least 1 and below 5"):
        feed(make(), 4).take(tbptt.Cursor(), 5)


def test_an_error_while_reading_ahead_reaches_the_reader():
    stream = make(vocabulary_size=31)
    reader = tbptt.PrefetchFeed(stream, 1)
    _, cursor = reader.take(tbptt.Cursor(), 1)
    with pytest.raises(ValueError, match="Token 31 is 31"):
        reader.take(cursor, 1)


def test_prefetching_reads_every_window_once():
    stream = make()
    asked = []
    read = stream.windows
    stream.windows = lambda cursor, count, *rows: asked.append(count) or read(cursor, count, *rows)
    reader = tbptt.PrefetchFeed(stream, 4)
    cursor = tbptt.Cursor()
    counts = (4, 1, 3, 2, 4, 4, 3, 1)
    for count in counts:
        _, cursor = reader.take(cursor, count)
    reader.take(cursor, 1)  # waits for the last reading ahead, and begins one more
    reader._thread.shutdown(wait=True)
    assert sum(asked) == sum(counts) + 4 + 1


def test_handed_out_windows_are_not_written_over():
    reader = tbptt.PrefetchFeed(make(), 1)
    first, cursor = reader.take(tbptt.Cursor(), 1)
    before = np.array(first.windows.inputs)
    for _ in range(3):
        _, cursor = reader.take(cursor, 1)
    assert_same_bits(first.windows.inputs, before)
