"""Documents and features from files: what is read, and what is refused."""

import numpy as np
import pytest

import tbptt
from tbptt.streams.segments import Segments


def read(path):
    return list(tbptt.read_documents(str(path)))


def test_json_lines_with_texts_and_with_tokens(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "ab\\nc"}\n\n{"tokens": [3, 1], "id": 7}\n')
    (first, text), (second, tokens) = read(path)
    assert (first, text) == (f"{path}:1", "ab\nc")
    assert second == f"{path}:3"
    assert tokens.tolist() == [3, 1]


def test_a_document_a_line_and_a_file(tmp_path):
    (tmp_path / "names.txt").write_text("emma\r\n\nolivia\n")
    assert [text for _, text in read(tmp_path / "names.txt")] == ["emma", "olivia"]
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "b.txt").write_text("second")
    (tmp_path / "more" / "a.txt").write_text("first\nline")
    assert [text for _, text in read(tmp_path / "more")] == ["first\nline", "second"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "ab"}\n{"text": \n', r"a\.jsonl:2 is not JSON"),
        ("a.jsonl", b'{"words": "ab"}\n', r"a\.jsonl:1 has neither a text nor tokens"),
        ("a.jsonl", b"[1, 2]\n", r"a\.jsonl:1 has neither a text nor tokens"),
        ("a.jsonl", b'{"tokens": [1, 2.5]}\n', r"a\.jsonl:1 has neither a text nor tokens"),
        ("a.jsonl", b'{"text": "ab"}\n{"text": ""}\n', r"a\.jsonl:2 is an empty document"),
        ("a.jsonl", b'{"tokens": []}\n', r"a\.jsonl:1 is an empty document"),
        ("a.txt", b"fine\ncaf\xe9\n", r"a\.txt:2 is not UTF-8"),
    ],
)
def test_files_that_hold_no_documents_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / name)


def test_empty_file_in_a_folder_and_no_file_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(ValueError, match=r"a\.txt' is an empty document. Leave it out"):
        read(tmp_path)
    with pytest.raises(ValueError, match="There is no file '/no/such'"):
        read("/no/such")


def test_encoding_says_which_document_it_cannot_encode():
    vocabulary = tbptt.Vocabulary.of("abc", "characters", boundary=True)
    assert vocabulary.boundary == 0
    encoded = tbptt.encode_documents([("x", "ab"), ("y", np.array([2, 1]))], vocabulary)
    assert encoded.values.tolist() == [1, 2, 2, 1]
    with pytest.raises(ValueError, match="y: The character 'd' on line 1"):
        tbptt.encode_documents([("x", "ab"), ("y", "bd")], vocabulary)
    with pytest.raises(ValueError, match="x is a text, and there is no vocabulary"):
        tbptt.encode_documents([("x", "ab")])


def test_a_vocabulary_without_a_boundary_says_so():
    with pytest.raises(ValueError, match="Build it with boundary=True"):
        _ = tbptt.Vocabulary.of("abc", "characters").boundary
    with pytest.raises(ValueError, match="holds the character 0"):
        tbptt.Vocabulary.of("a\0c", "characters", boundary=True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Segments.of([]), "There are no segments"),
        (
            lambda: Segments(np.ones(3), np.array([2])),
            "The index ends at 2, but there are 3 values",
        ),
        (lambda: Segments(np.ones(3), np.array([2, 2, 3])), "Segment 1 has length 0"),
        (lambda: Segments(np.ones(3), np.array([2, 1, 3])), "Segment 1 has length -1"),
        (
            lambda: Segments.of([np.ones([2, 3]), np.ones([2, 4])]),
            r"Segment 1 has shape \[2, 4\], but segment 0 has \[2, 3\]",
        ),
        (lambda: documents([[1, 2], [3]]), "Document 1 has one token, .* use a boundary token"),
        (lambda: documents([[1, 2]], boundary=9), r"boundary \(9\) must be at least 0 and below"),
        (lambda: documents([[1.0, 2.0]]), "tokens are float64, but must be integers"),
    ],
)
def test_segments_that_do_not_fit_are_refused(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def documents(arrays, **options):
    segments = Segments.of([np.array(array) for array in arrays])
    return tbptt.DocumentStream(segments, rows=1, window_length=3, vocabulary_size=9, **options)


def test_token_out_of_range_is_refused_where_it_is_read():
    with pytest.raises(ValueError, match="Token 3 is 12, but ids must be from 0 to 8"):
        documents([[1, 2], [3, 12]], shuffle=False).windows(tbptt.Cursor(), 1)
    with pytest.raises(ValueError, match=f"Token 1 is {2**32 + 1}"):  # would be 1 as an int32
        documents([[1, 2**32 + 1]]).windows(tbptt.Cursor(), 1)


def frames(values, labels=None, **options):
    segments = Segments.of([np.array(value, np.float64) for value in values])
    return tbptt.FrameStream(segments, labels, rows=1, window_length=3, **options)


@pytest.mark.parametrize(
    ("values", "labels", "options", "message"),
    [
        ([[[1.0]]], None, {}, "Sequence 0 has one frame, after which there is none to predict"),
        ([[[1.0], [np.nan]]], None, {}, r"Frame 1 holds NaN or infinity: \[nan\]"),
        ([[[1.0], [2.0]], [[np.inf]]], np.array([0, 1]), {}, "Frame 2 holds NaN or infinity"),
        ([[[1.0], [2.0]]], np.array([1, 2, 3]), {}, "There are 3 labels, but 1 sequences of 2"),
        ([[[1.0], [2.0]]], np.array([2]), dict(classes=2), "Label 0 is 2, but labels must be from"),
        ([[[1.0], [2.0]]], np.array([0, -1]), dict(classes=2), "Label 1 is -1"),
        ([[[1.0], [2.0]]], np.array([0]), dict(score="first"), r"score \('first'\) must be one of"),
    ],
)
def test_frames_that_cannot_be_learnt_are_refused(values, labels, options, message):
    with pytest.raises(ValueError, match=message):
        frames(values, labels, **options)


def test_memory_mapped_frames_are_checked_as_they_are_read(tmp_path):
    np.save(tmp_path / "frames.npy", np.array([[1.0], [2.0], [np.nan], [3.0]], np.float32))
    values = np.load(tmp_path / "frames.npy", mmap_mode="r")
    stream = tbptt.FrameStream(
        Segments(values, np.array([4])), rows=1, window_length=2, shuffle=False
    )
    stream.windows(tbptt.Cursor(0, 0), 1)
    with pytest.raises(ValueError, match="Frame 2 holds NaN"):
        stream.windows(tbptt.Cursor(0, 1), 1)


def csv(tmp_path, text):
    path = tmp_path / "series.csv"
    path.write_text(text)
    return str(path)


def test_series_with_times_gaps_and_missing_values(tmp_path):
    path = csv(tmp_path, "day,x,y\n20200101,1,5\n20200102,,6\n20200103,3,NaN\n20200110,4,8\n")
    series = tbptt.read_series(path, time_column="day")
    assert series.names == ("x", "y")
    np.testing.assert_array_equal(series.values[:, 0], [1, np.nan, 3, 4])
    assert series.stretch_ends().tolist() == [3, 4]
    stream = tbptt.SeriesStream([series], tbptt.Standardizer.of(series), rows=1, window_length=4)
    window, _ = stream.windows(tbptt.Cursor(), 1)
    assert np.isfinite(window.inputs).all()
    assert np.isfinite(window.targets).all()
    assert window.weight[0, :, 0].tolist() == [0, 0, 0, 0]  # y or x is missing in both targets
    only_x = tbptt.SeriesStream(
        [series], tbptt.Standardizer.of(series), rows=1, window_length=4, targets=["x"]
    )
    assert only_x.windows(tbptt.Cursor(), 1)[0].weight[0, :, 0].tolist() == [0, 1, 0, 0]


def test_tables_of_other_programs_are_read(tmp_path):
    """Semicolons with decimal commas, tabs, Latin-1, a byte-order mark, quotes, blank lines."""
    path = tmp_path / "series.csv"
    path.write_bytes(
        "tag;wärme;größe\n2020-01-01;1,5;2\n\n2020-01-02;-0,25;1e3\n".encode("latin-1")
    )
    series = tbptt.read_series(str(path))
    assert series.names == ("wärme", "größe")
    assert series.values.tolist() == [[1.5, 2.0], [-0.25, 1000.0]]
    path.write_bytes("\ufeffx\ty\n1\t2\n3\t?\n".encode())
    series = tbptt.read_series(str(path))
    assert series.names == ("x", "y")
    np.testing.assert_array_equal(series.values, [[1, 2], [3, np.nan]])
    path.write_text('"x, of a",y\n"1",2\n3,4\n')
    assert tbptt.read_series(str(path)).names == ("x, of a", "y")


def test_times_with_a_zone_are_utc(tmp_path):
    path = csv(
        tmp_path,
        "t,x\n" + "".join(f"2020-03-29T{t},1\n" for t in ("01:00+01:00", "03:00+02:00", "02:00Z")),
    )
    times = tbptt.read_series(path).times
    assert times.astype("datetime64[h]").astype(str).tolist() == [
        "2020-03-29T00", "2020-03-29T01", "2020-03-29T02",
    ]  # fmt: skip


def test_persistence_is_scored_where_a_model_is():
    """By hand: a gap, a missing origin, a missing target, and a warm-up."""
    days = np.array([1, 2, 3, 4, 5, 9, 10, 11, 12], "datetime64[D]")
    values = np.array([5, 1, np.nan, 4, 7, 2, 3, np.nan, 6], float)[:, None]
    series = tbptt.Series(values, ("x",), days)
    stream = tbptt.SeriesStream(
        [series], tbptt.Standardizer(np.zeros(1), np.ones(1)), rows=1, window_length=3, warm_up=2
    )
    # Lines 2 and 7 are missing, 5 is the first after the gap.
    assert stream.origins.tolist() == [0, 1, 2, 3, 5, 6, 7]
    assert stream.scored == 4
    assert stream.persistence() == np.mean([(4 - 1) ** 2, (7 - 4) ** 2, (3 - 2) ** 2, (6 - 3) ** 2])
    windows, _ = stream.windows(tbptt.Cursor(), stream.windows_per_epoch)
    assert windows.weight.sum() == stream.scored
    path = tbptt.SeriesStream(
        [series],
        tbptt.Standardizer(np.zeros(1), np.ones(1)),
        rows=1,
        window_length=3,
        horizon=2,
        path=True,
    )
    assert path.scored == 1  # of lines 3 and 4, from line 2, which is missing: 1 is the last known
    assert path.persistence() == np.mean([(4 - 1) ** 2, (7 - 1) ** 2])


def test_warm_up_is_read_and_not_scored():
    series = tbptt.Series(np.arange(9.0)[:, None], ("x",))
    stream = tbptt.SeriesStream(
        [series], tbptt.Standardizer(np.zeros(1), np.ones(1)), rows=1, window_length=8, warm_up=5
    )
    window, _ = stream.windows(tbptt.Cursor(), 1)
    scored = window.targets[window.weight > 0]
    assert scored[:, 0].tolist() == [5, 6, 7, 8]


def test_scale_is_of_the_training_part_and_goes_back():
    series = tbptt.Series(np.array([[1.0, 7.0], [3.0, 7.0], [np.nan, 7.0]]), ("x", "y"))
    scale = tbptt.Standardizer.of(series)
    assert scale.mean.tolist() == [2, 7]
    assert scale.deviation.tolist() == [1, 1]
    assert scale.undo(scale.apply(np.array([[5.0, 8.0]]))[:, [1]], [1]).tolist() == [[8.0]]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("x\n1\n", {}, "has 2 lines, but must be a CSV file with a line of column names and two"),
        ("x,y\n1,2\n3\n", {}, r"series\.csv:3 has 1 fields, but there are 2 column names"),
        ("x,y\n1,2\n3,much\n", {}, r"series\.csv:3: 'much' in column 'y' is no number"),
        ("x,y\n1,2\n3,4\n", dict(columns=["z"]), "There is no column 'z' in .* There are: x, y"),
        ("x,y\n1,2\n3,4\n", dict(time_column="t"), "There is no column 't'"),
        ("t,y\nsoon,2\nlater,4\n", {}, "csv:2: 'soon' in column 't' is no time like 2020-01-31"),
        ("t,y\n2020-01-02,2\n2020-01-01,4\n", {}, "Time 2020-01-01 on line 1 .* comes before"),
        ("t,y\n2020-01-02,2\n2020-01-02,4\n", {}, "Time 2020-01-02 on line 1 .* repeats"),
        ("x,y\n1,2\ninf,4\n", {}, "csv:3: 'inf' in column 'x' is beyond what float32 holds"),
    ],
)
def test_tables_that_cannot_be_read_are_refused(tmp_path, text, options, message):
    with pytest.raises(ValueError, match=message):
        tbptt.read_series(csv(tmp_path, text), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(horizon=0), r"horizon \(0\) must be at least 1"),
        (dict(horizon=3), r"No stretch without a gap is longer than the horizon \(3\)"),
        (dict(targets=["z"]), "There is no column 'z'"),
        (dict(warm_up=-1), r"warm_up \(-1\)"),
    ],
)
def test_forecasts_that_cannot_be_made_are_refused(options, message):
    series = tbptt.Series(np.ones([3, 1]), ("x",))
    with pytest.raises(ValueError, match=message):
        tbptt.SeriesStream(
            [series], tbptt.Standardizer(np.ones(1), np.ones(1)), rows=1, window_length=2, **options
        )


def test_series_of_other_columns_and_columns_without_values_are_refused():
    one, other = (tbptt.Series(np.ones([3, 1]), (name,)) for name in "xy")
    with pytest.raises(ValueError, match="Series 1 has columns y, but series 0 has x"):
        tbptt.SeriesStream(
            [one, other], tbptt.Standardizer(np.ones(1), np.ones(1)), rows=1, window_length=2
        )
    with pytest.raises(ValueError, match="Column 'x' has no value in the training part"):
        tbptt.Standardizer.of(tbptt.Series(np.full([3, 1], np.nan), ("x",)))
