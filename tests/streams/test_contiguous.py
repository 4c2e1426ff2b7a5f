"""Contiguous rows: what stands where, refusals; the laws of all streams are in test_streams."""

import resource

import numpy as np
import pytest

import tbptt
from tbptt.streams.prepared import open_tokens


def make(tokens=41, rows=3, window_length=4, tail="drop", vocabulary_size=1000):
    return tbptt.ContiguousStream(
        np.arange(tokens),
        rows=rows,
        window_length=window_length,
        vocabulary_size=vocabulary_size,
        tail=tail,
    )


def test_rows_are_equal_stretches_and_targets_follow_inputs():
    stream = make()  # 40 targets: 13 a row, 3 windows of 4
    assert stream.windows_per_epoch == 3
    windows, _ = stream.windows(tbptt.Cursor(), 3)
    by_row = windows.inputs.transpose(2, 0, 1).reshape(3, -1)
    assert by_row.tolist() == [list(range(s, s + 12)) for s in (0, 13, 26)]
    assert (windows.targets == windows.inputs + 1).all()
    assert windows.weight is None
    assert windows.controls.reset is None
    assert windows.start.tolist() == [[True] * 3, [False] * 3, [False] * 3]
    assert windows.offset.tolist() == [[0, 13, 26], [4, 17, 30], [8, 21, 34]]


@pytest.mark.parametrize(
    ("tokens", "rows"), [(2, 1), (5, 1), (13, 1), (41, 1), (5, 3), (13, 3), (41, 3), (42, 3)]
)
@pytest.mark.parametrize("window_length", [1, 4, 50])
def test_padded_stream_holds_every_target_once(tokens, rows, window_length):
    stream = make(tokens, rows, window_length, tail="pad")
    windows, _ = stream.windows(tbptt.Cursor(), stream.windows_per_epoch)
    scored = np.sort(windows.targets[windows.weight > 0])
    assert scored.tolist() == list(range(1, tokens))
    assert set(np.unique(windows.weight)) <= {0.0, 1.0}
    assert (windows.inputs[windows.weight > 0] + 1 == windows.targets[windows.weight > 0]).all()


def test_penn_treebank_has_the_windows_that_zaremba_had():
    tokens = np.zeros([929_589], np.uint16)
    stream = tbptt.ContiguousStream(tokens, rows=20, window_length=20, vocabulary_size=1)
    assert stream.windows_per_epoch == 2323


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(rows=0), r"rows \(0\) must be at least 1"),
        (dict(window_length=0), r"window_length \(0\) must be at least 1"),
        (dict(tail="cut"), r"tail \('cut'\) must be one of drop, pad"),
        (dict(rows=11), r"41 tokens are too few for rows=11 .* Use at most 10 rows"),
        (dict(window_length=41, rows=1), r"too few for rows=1 .* Use a shorter window or a longer"),
        (dict(rows=41, tail="pad"), r"Use at most 40 rows"),
        (dict(tokens=1, rows=1), r"1 tokens are too few"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_tokens_out_of_range_are_refused():
    stream = make(vocabulary_size=31)
    stream.windows(tbptt.Cursor(), 1)
    with pytest.raises(ValueError, match="Token 31 is 31, but ids must be from 0 to 30"):
        stream.windows(tbptt.Cursor(0, 1), 1)
    negative = tbptt.ContiguousStream(
        np.array([1, -1, 1]), rows=1, window_length=2, vocabulary_size=5
    )
    with pytest.raises(ValueError, match="Token 1 is -1"):
        negative.windows(tbptt.Cursor(), 1)


def test_tokens_of_another_kind_are_refused():
    with pytest.raises(TypeError, match="tokens are float64, but must be integers"):
        tbptt.ContiguousStream(np.zeros([9]), rows=1, window_length=2, vocabulary_size=5)
    with pytest.raises(ValueError, match=r"tokens has shape \[3, 3\], but must be \[any\]"):
        tbptt.ContiguousStream(np.zeros([3, 3], int), rows=1, window_length=2, vocabulary_size=5)


@pytest.mark.parametrize("cursor", [tbptt.Cursor(0, 3), tbptt.Cursor(0, -1)])
def test_cursor_outside_the_stream_is_refused(cursor):
    with pytest.raises(ValueError, match=r"cursor.index \(-?\d\) must be at least 0 and below 3"):
        make().windows(cursor, 1)


@pytest.mark.parametrize("suffix", [".npy", ".bin"])
def test_memory_mapped_tokens_read_like_an_array(tmp_path, suffix):
    tokens = np.random.default_rng(0).integers(0, 1000, [500]).astype(np.uint16)
    path = tmp_path / f"tokens{suffix}"
    np.save(path, tokens) if suffix == ".npy" else tokens.tofile(path)
    options = dict(rows=3, window_length=4, vocabulary_size=1000)
    mapped = tbptt.ContiguousStream(open_tokens(path), **options)
    plain = tbptt.ContiguousStream(tokens, **options)
    for cursor in (tbptt.Cursor(), tbptt.Cursor(1, 39)):
        a, b = mapped.windows(cursor, 5)[0], plain.windows(cursor, 5)[0]
        assert (a.inputs == b.inputs).all()
        assert (a.targets == b.targets).all()


def test_parts_of_a_memory_map_are_those_parts(tmp_path):
    """A slice of a map says that it begins where the map does."""
    np.arange(100, dtype=np.uint16).tofile(tmp_path / "tokens.bin")
    tokens = open_tokens(tmp_path / "tokens.bin")[10:][30:]
    for part in (tokens, tokens[::2]):
        stream = tbptt.ContiguousStream(part, rows=2, window_length=3, vocabulary_size=100)
        windows, _ = stream.windows(tbptt.Cursor(), 2)
        expected = tbptt.ContiguousStream(
            np.array(part), rows=2, window_length=3, vocabulary_size=100
        )
        assert (windows.inputs == expected.windows(tbptt.Cursor(), 2)[0].inputs).all()
        assert windows.inputs[0, 0, 0] == 40


def test_memory_mapped_tokens_do_not_stay_in_memory(tmp_path):
    """40 MB read through; the pages touched are given back."""
    path = tmp_path / "tokens.bin"
    np.zeros([20_000_000], np.uint16).tofile(path)
    stream = tbptt.ContiguousStream(
        open_tokens(path), rows=4, window_length=1000, vocabulary_size=1
    )
    cursor, resident = tbptt.Cursor(), []
    for _ in range(100):
        _, cursor = stream.windows(cursor, 50)
        resident.append(resident_bytes())
    assert resident[-1] - resident[1] < 10 << 20


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty. Give the path of a file of uint16 tokens"),
        (b"abc", "3 bytes, not a multiple of the 2 bytes"),
    ],
)
def test_token_files_that_hold_none_are_refused(tmp_path, content, message):
    path = tmp_path / "tokens.bin"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        open_tokens(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: b"", "is empty. Give the path of a file of uint16 tokens"),
        (lambda data: data[:-1], r"shape \[9\] of uint16 takes 146 bytes, and it has 145"),
        (lambda data: data[:20], "cannot be read"),
        (lambda data: b"text", "cannot be read"),
        (lambda data: data.replace(b"(9,)", b"(99999999999,)"), "cannot be read"),
    ],
)
def test_arrays_that_are_empty_cut_or_foreign_are_refused(tmp_path, change, message):
    path = tmp_path / "tokens.npy"
    np.save(path, np.arange(9, dtype=np.uint16))
    assert open_tokens(path).tolist() == list(range(9))
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=message):
        open_tokens(path)


def test_token_files_with_pickles_are_refused(tmp_path):
    path = tmp_path / "tokens.npy"
    np.save(path, np.array([{}], object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"holds Python objects, which are never loaded"):
        open_tokens(path)
