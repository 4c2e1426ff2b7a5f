"""What a fingerprint sees: everything of a small epoch, every stretch of a large one."""

import hashlib

import numpy as np
import pytest
import tensorflow as tf

import tbptt
from tbptt.streams import fingerprint as module
from tbptt.streams.fingerprint import SAMPLED, fingerprint
from tests.streams.test_streams import STREAMS, make

TOKENS = np.random.default_rng(0).integers(0, 250, 200_000)


def stream(tokens=TOKENS, rows=4, window_length=100, **options):
    return tbptt.ContiguousStream(
        tokens, rows=rows, window_length=window_length, vocabulary_size=250, **options
    )


class ByWindows:
    """A stream of a user's own, of which only the windows are known."""

    def __init__(self, inner):
        self.rows, self.windows_per_epoch = inner.rows, inner.windows_per_epoch
        self.window_length, self.windows = inner.window_length, inner.windows


@pytest.fixture
def small_budget(monkeypatch):
    """Everything above 64 KiB counts as large; 32 KiB of it are read."""
    monkeypatch.setattr(module, "WHOLE", (1 << 16, 1 << 16))
    monkeypatch.setattr(module, "SAMPLE", 1 << 15)
    monkeypatch.setattr(module, "STRETCHES", 256)


def test_large_epoch_of_few_windows_has_a_fingerprint():
    """A file of 40 MB with --rows=512 --window_length=512: 153 windows, more than 256 MiB."""
    made = stream(np.zeros([40_000_000], np.uint8), rows=512, window_length=512)
    assert made.windows_per_epoch < 256
    assert fingerprint(made).startswith(SAMPLED)


def test_small_epoch_keeps_the_fingerprint_of_earlier_checkpoints():
    made = make("documents", "everything")
    digest = hashlib.sha256(f"{made.rows} {made.windows_per_epoch}".encode())
    last = made.windows_per_epoch - 1
    for epoch, indices in ((0, range(last + 1)), (1, (0, last))):
        for index in indices:
            window, _ = made.windows(tbptt.Cursor(epoch, index), 1)
            for part in tf.nest.flatten(window):
                if part is not None:
                    digest.update(f"{part.dtype} {part.shape}".encode() + part.tobytes())
    assert fingerprint(made) == digest.hexdigest()[:16]


@pytest.mark.parametrize("wrap", [lambda made: made, ByWindows])
def test_change_of_all_but_regular_windows_is_seen(small_budget, wrap):
    """Only every eighth window stays as it was, so that a regular sample could miss the rest."""
    changed = TOKENS.copy().reshape(4, -1, 100)
    kept = np.arange(changed.shape[1]) % 8 == 0
    changed[:, ~kept] = (changed[:, ~kept] + 1) % 250
    before, after = (fingerprint(wrap(stream(t))) for t in (TOKENS, changed.reshape(-1)))
    assert before.startswith(SAMPLED)
    assert before != after


def test_change_of_two_parts_of_a_row_is_seen_wherever_it_is(small_budget):
    made = stream()
    part = made.row_length // (module.STRETCHES // made.rows)
    before = fingerprint(made)
    assert before == fingerprint(stream())
    for begin in range(0, len(TOKENS) - 2 * part, 17 * part // 3):
        changed = TOKENS.copy()
        changed[begin : begin + 2 * part] += 1
        changed %= 250
        assert fingerprint(stream(changed)) != before, begin


@pytest.mark.parametrize("change", [0, 1, -1])
def test_first_and_last_tokens_are_seen(small_budget, change):
    changed = TOKENS.copy()
    changed[change] += 1
    changed %= 250
    assert fingerprint(stream(changed, tail="pad")) != fingerprint(stream(tail="pad"))


@pytest.mark.parametrize("name", STREAMS)
def test_every_stream_can_be_sampled(monkeypatch, name):
    monkeypatch.setattr(module, "WHOLE", (0, 0))
    assert fingerprint(make(name)) == fingerprint(make(name))
    assert fingerprint(make(name)) != fingerprint(make(name, rows=2))
    assert fingerprint(make(name)) != fingerprint(make(name, "stride"))


def test_cost_is_bounded(small_budget, monkeypatch):
    """Ten times as large an epoch: not one byte more is read."""
    read = []
    inner = tbptt.ContiguousStream.read
    monkeypatch.setattr(
        tbptt.ContiguousStream,
        "read",
        lambda self, epoch, first, count, rows: (
            read.append(count) or inner(self, epoch, first, count, rows)
        ),
    )
    for repeats in (1, 10):
        fingerprint(stream(np.tile(TOKENS, repeats)))
    half = len(read) // 2
    assert sum(read[:half]) >= sum(read[half:])
