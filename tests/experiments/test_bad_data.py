"""Data that cannot be used: what is promised to be said before training, and that nothing is lost.

Every case is a command as a user gives it, in a folder that the case has filled.
"""

import io
import json
import os
import re
import zipfile

import numpy as np
import pytest

import tbptt
from experiments import forecast, language_model, memory, music, speech
from tbptt.streams import prepared
from tests.conftest import full_disk
from tests.experiments.conftest import command_line, contents, pack
from tests.experiments.test_bad_runs import TINY
from tools import prepare

TEXT = "the cat sat on the mat\nthe end of the cat\n" * 12
DOCUMENTS = [{"text": TEXT[k : k + 40]} for k in range(0, 60, 6)]
LM = (language_model, "--window_length=5", "--embedding=4", "--valid_rows=2")
RNG = np.random.default_rng(0)


def file(name, content):
    """A case's only file."""
    return {name: content if isinstance(content, bytes) else content.encode()}


def lines(*documents):
    return "".join(json.dumps(document) + "\n" for document in documents)


def archive(change=None, drop=(), **arrays):
    """The bytes of an `.npz` file; `change` maps them to others."""
    buffer = io.BytesIO()
    np.savez(buffer, **{name: each for name, each in arrays.items() if name not in drop})
    return change(buffer.getvalue()) if change else buffer.getvalue()


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def huge(name):
    """An `.npz` file whose first array says that it has 10^12 rows."""
    buffer, header = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (10**12, 11)}
    )
    with zipfile.ZipFile(buffer, "w") as stored:
        for each in ("train", "train_len", "valid", "valid_len", "test", "test_len"):
            content = header.getvalue() if each == name else npy(np.array([2]))
            stored.writestr(f"{each}.npy", content)
    return buffer.getvalue()


def music_file(**changed):
    keys = changed.pop("keys", 20)
    arrays = {}
    for part, lengths in (("train", [9, 5]), ("valid", [7, 4]), ("test", [6, 3])):
        arrays[part] = pack(np.ones([sum(lengths), keys]))
        arrays[f"{part}_len"] = np.array(lengths)
    options = {name: changed.pop(name) for name in ("change", "drop") if name in changed}
    return file("music.npz", archive(**options, **(arrays | changed)))


def speech_file(**changed):
    arrays = {}
    for part, count in (("train", 8), ("test", 4)):
        arrays[f"{part}_len"] = np.full(count, 3)
        arrays[part] = RNG.normal(size=[3 * count, 5])
        arrays[f"{part}_y"] = np.arange(count) % 2
    return file("speech.npz", archive(**(arrays | changed)))


def nan_at(shape, *place):
    values = np.ones(shape)
    values[place] = np.nan
    return values


def table(*rows, names="day,wind,rain"):
    return file("table.csv", "\n".join([names, *rows]))


def days(count, cell="{d},1"):
    return [f"2020-01-{d + 1:02}," + cell.format(d=d % 5) for d in range(count)]


MUSIC = (music, "--keys=20", "--data=music.npz")
SPEECH = (speech, "--data=speech.npz")
CSV = (forecast, "--data=table.csv", "--window_length=4")
CORPUS = (*LM, "--corpus=a.txt")
DOCS = (*LM, "--documents=a.jsonl")

# name: files, command, what the message must hold
CASES = {
    # Text
    "no file": ({}, CORPUS, "There is no file 'a.txt'. Give the path of a UTF-8 text file."),
    "empty": (file("a.txt", ""), CORPUS, "'a.txt' is empty."),
    "folder": (file("a.txt/b", "x"), CORPUS, "'a.txt' is a folder, not a file."),
    "pipe": ({"a.txt": None}, CORPUS, "'a.txt' is a pipe or a device, not a file."),
    "no UTF-8": (
        file("a.txt", b"caf\xe9 " * 99),
        CORPUS,
        "'a.txt' is not UTF-8: byte 0xe9 at offset 3. Convert it (iconv -f latin1 -t utf-8), or "
        "take bytes",
    ),
    "no validation": (
        file("a.txt", TEXT),
        (*CORPUS, "--valid_fraction=0"),
        "--valid_fraction (0.0) of 504 tokens is 0, but this part is read in 2 rows, which takes "
        "3. Use a larger --valid_fraction, or a longer corpus.",
    ),
    "no test": (file("a.txt", TEXT), (*CORPUS, "--test_fraction=0"), "--test_fraction (0.0) of"),
    "burn-in": (
        file("a.txt", TEXT),
        (*CORPUS, "--burn_in=5"),
        "every step is scored once. Use a smaller burn_in.",
    ),
    "three texts": (
        {"a": b"a b\n" * 50, "b": b"a c\n" * 50},
        (*LM, "--tokens=words", "--corpus=", "--train_text=a", "--valid_text=b", "--test_text=a"),
        "b: The word 'c' on line 1 is not among the 3 tokens of the vocabulary",
    ),
    "short test": (
        {"a": b"a b\n" * 50, "b": b"a"},
        (*LM, "--tokens=words", "--corpus=", "--train_text=a", "--valid_text=a", "--test_text=b"),
        "'b' has 1 tokens, but is read in 1 rows, which takes 2. Give a longer text",
    ),
    # Several sources, and flags without effect
    "two sources": (
        file("a.txt", TEXT),
        (*CORPUS, "--documents=a.jsonl"),
        "--documents and --corpus each name what to train on. Give one of them.",
    ),
    "three sources": (
        {},
        (*LM, "--documents=a", "--prepared=b", "--train_text=c", "--valid_text=d", "--test_text=e"),
        "--documents and --prepared and --train_text each name",
    ),
    "words to keep of characters": (
        {},
        (*CORPUS, "--vocabulary_size=9"),
        "--vocabulary_size has no effect with --tokens=characters.",
    ),
    "test documents of a text": (
        {},
        (*CORPUS, "--test_documents=2"),
        "--test_documents has no effect without --documents and without --prepared.",
    ),
    "cutoffs": ({}, (*CORPUS, "--cutoffs=2,5"), "--cutoffs has no effect with --readout=full."),
    "core dropout": ({}, (*CORPUS, "--core_dropout=-5"), "core_dropout (-5.0) must be at least -1"),
    "shuffled documents": (
        {},
        (*DOCS, "--shuffle=offset"),
        "--shuffle has no effect with --documents",
    ),
    "fraction and number": (
        {},
        (*DOCS, "--test_documents=2", "--test_fraction=0.2"),
        "--test_fraction has no effect with --test_documents.",
    ),
    "teacher forcing": (
        {},
        (forecast, "--teacher_forcing=0.5"),
        "--teacher_forcing has no effect with --nopath. Leave it out, or use --path.",
    ),
    "keys without data": ({}, (music, "--keys=5"), "--keys has no effect without --data."),
    # Documents
    "no documents": (file("a.jsonl", "\n \n"), DOCS, "'a.jsonl' has only blank lines"),
    "empty documents": (file("a.jsonl", ""), DOCS, "'a.jsonl' is empty."),
    "empty folder": (file("a/b/c", "x"), (*LM, "--documents=d"), "There is no file 'd'."),
    "two documents": (
        file("a.jsonl", lines(*DOCUMENTS[:2])),
        DOCS,
        "Documents found: 2. Training, validation and test need one each. Add documents",
    ),
    "none to train on": (
        file("a.jsonl", lines(*DOCUMENTS)),
        (*DOCS, "--test_documents=9"),
        "leaves none to train on. Use smaller --valid_documents and --test_documents",
    ),
    "surrogate": (
        file("a.jsonl", lines(*DOCUMENTS[:4], {"text": "a\ud800b"})),
        DOCS,
        r"a.jsonl:5 holds half of a surrogate pair, '\ud800'",
    ),
    "deep": (
        file("a.jsonl", '{"text": ' + "[" * 100_000),
        DOCS,
        "a.jsonl:1 is not JSON (it is nested too deeply).",
    ),
    "texts and tokens": (
        file("a.jsonl", lines(*DOCUMENTS, {"tokens": [1, 2]})),
        DOCS,
        "a.jsonl:11 holds tokens, not a text",
    ),
    "both": (file("a.jsonl", lines({"text": "a", "tokens": [1]})), DOCS, "both a text and tokens"),
    "negative": (file("a.jsonl", lines({"tokens": [-1]})), DOCS, "a.jsonl:1 has the token -1."),
    "huge token": (file("a.jsonl", lines({"tokens": [10**26]})), DOCS, "a.jsonl:1 has the token 1"),
    "huge number": (
        file("a.jsonl", '{"tokens": [' + "9" * 9999 + "]}"),
        DOCS,
        "a.jsonl:1 is not JSON (it holds a number of thousands of digits).",
    ),
    "not JSON": (
        file("a.jsonl", lines(*DOCUMENTS) + "{"),
        DOCS,
        "a.jsonl:11 is not JSON (Expecting property name enclosed in double quotes at column 2). "
        'It must be an object like {"text": "..."} or {"tokens": [1, 2]}.',
    ),
    "no UTF-8 in documents": (
        file("a.jsonl", b'{"text": "\xff"}'),
        DOCS,
        "a.jsonl:1 is not UTF-8: byte 0xff at offset 10.",
    ),
    # Music
    "no npz": (file("music.npz", "text"), MUSIC, "'music.npz' is not an .npz file, or it is cut"),
    "empty npz": (file("music.npz", ""), MUSIC, "'music.npz' is empty."),
    "npy for npz": (file("music.npz", npy(np.ones(3))), MUSIC, "is not an .npz file, or it is cut"),
    "cut npz": (music_file(change=lambda data: data[:-30]), MUSIC, "is not an .npz file, or it is"),
    "flipped byte": (
        music_file(change=lambda data: data[:160] + bytes([data[160] ^ 255]) + data[161:]),
        MUSIC,
        "music.npz': the array 'train' cannot be read",
    ),
    "missing array": (
        music_file(drop=("test_len",)),
        MUSIC,
        "'music.npz' lacks test_len; it holds test, train, train_len, valid, valid_len.",
    ),
    "huge header": (
        file("music.npz", huge("train")),
        MUSIC,
        "the array 'train' cannot be read (shape [1000000000000, 11] of uint8 takes",
    ),
    "objects": (
        music_file(train=np.array([{}, 3], object)),
        MUSIC,
        "the array 'train' cannot be read (it holds Python objects, which are never loaded).",
    ),
    "strings": (music_file(train=np.array([["a"]])), MUSIC, "music.npz: train holds <U1, but must"),
    "one dimension": (
        music_file(train=np.ones(14)),
        MUSIC,
        "music.npz: train has shape [14], but must be [any, any].",
    ),
    "other keys": (
        music_file(keys=88),
        (music, "--keys=5", "--data=music.npz"),
        "music.npz: train has 11 columns, but with --keys=5 it must have 5, or 1 of packed bits",
    ),
    "keys cut off": (
        music_file(keys=88),
        (music, "--keys=81", "--data=music.npz"),
        "music.npz: train has sounding keys from number 81 on. Give as many --keys as it has.",
    ),
    "other keys of a part": (
        music_file(valid=np.ones([11, 12])),
        MUSIC,
        "music.npz: valid has 12 columns, but with --keys=20",
    ),
    "loud": (
        music_file(train=np.full([14, 20], 7.5)),
        MUSIC,
        "music.npz: train is 7.5 in frame 0, key 0, but must be from 0 to 1",
    ),
    "not a number in music": (
        music_file(train=nan_at([14, 20], 3, 4)),
        MUSIC,
        "music.npz: train is nan at [3, 4], but must be finite.",
    ),
    "lengths": (music_file(train_len=np.array([9, 6])), MUSIC, "train_len sums to 15, but there a"),
    "one frame": (music_file(train_len=np.array([13, 1])), MUSIC, "train_len is 1 at 1, but must"),
    "float lengths": (music_file(train_len=np.array([9.0, 5])), MUSIC, "must hold integers"),
    "no segments": (music_file(test_len=np.array([], int)), MUSIC, "test_len is empty"),
    # Speech
    "too many labels": (
        speech_file(train_y=np.arange(9) % 2),
        SPEECH,
        "speech.npz: train_y has shape [9], but there are 8 utterances. Give one label for each.",
    ),
    "too few labels": (speech_file(train_y=np.arange(7) % 2), SPEECH, "train_y has shape [7], but"),
    "labels of two dimensions": (speech_file(test_y=np.ones([4, 1])), SPEECH, "test_y has shape"),
    "a label that is none": (
        speech_file(train_y=nan_at([8], 2)),
        SPEECH,
        "speech.npz: train_y is nan at [2], but must be finite.",
    ),
    "unknown label": (
        speech_file(test_y=np.full(4, 9)),
        SPEECH,
        "Label 9 is in the test part",
    ),
    "one frame that is none": (
        speech_file(train=nan_at([24, 5], 7, 1)),
        SPEECH,
        "speech.npz: train is nan at [7, 1], but must be finite.",
    ),
    "other width": (
        speech_file(test=np.ones([12, 4])),
        SPEECH,
        "speech.npz: frames of train have 5 features, of test 4.",
    ),
    "text features": (speech_file(train=np.array([["a"]] * 24)), SPEECH, "train holds <U1, but"),
    "large features": (
        speech_file(train=np.where(np.arange(24)[:, None] == 3, 1e200, np.ones([24, 5]))),
        SPEECH,
        "speech.npz: train is 1e+200 at [3, 0], beyond what float32 holds, 3.4e+38.",
    ),
    "empty test": (
        speech_file(test=np.ones([0, 5]), test_len=np.ones(0, int), test_y=np.ones(0, int)),
        SPEECH,
        "speech.npz: test_len is empty, but there must be at least one sequence.",
    ),
    "all held out": (
        speech_file(),
        (*SPEECH, "--valid_fraction=0.999"),
        "--valid_fraction (0.999) of 8 utterances leaves none to train on. Use a smaller one, or 0",
    ),
    # Tables
    "double name": (
        table(*days(28), names="day,x,x"),
        CSV,
        "table.csv:1: two columns are named 'x'. Rename one of them.",
    ),
    "no name": (table(*days(28), names="day,x,"), CSV, "table.csv:1: column 3 has no name."),
    "no names": (
        table(*days(28, "1,2")[1:], names="20200101,1,2"),
        CSV,
        "table.csv:1 holds numbers where the names of the columns must be.",
    ),
    "column twice": (
        table(*days(28)),
        (*CSV, "--columns=wind,wind"),
        "The column 'wind' is asked for twice. Name each column once.",
    ),
    "target twice": (table(*days(28)), (*CSV, "--targets=rain,rain"), "'rain' is asked for twice"),
    "too large": (
        table(*days(27), "2020-01-28,1,1e308"),
        CSV,
        "table.csv:29: '1e308' in column 'rain' is beyond what float32 holds, 3.4e+38.",
    ),
    "infinite": (table(*days(27), "2020-01-28,1,-inf"), CSV, "table.csv:29: '-inf' in column"),
    "long field": (
        table(*days(27), '2020-01-28,1,"' + "1" * 200_000),
        CSV,
        "table.csv:29 cannot be read (field larger than field limit (131072)). Is a quotation mark",
    ),
    "no number": (
        table("2020-01-01,1,2", "", "2020-01-02,1,much"),
        CSV,
        "table.csv:4: 'much' in column 'rain' is no number.",
    ),
    "no time": (
        table("3/14/2020,1,2", "3/15/2020,1,2"),
        CSV,
        "table.csv:2: '3/14/2020' in column 'day' is no time like 2020-01-31, 20200131,",
    ),
    "some zones": (
        table("2020-01-01T00:00+01:00,1,2", "2020-01-02T00:00,1,2"),
        CSV,
        "table.csv:3: '2020-01-02T00:00' in column 'day' has a time zone where others have none",
    ),
    "zero bytes": (file("table.csv", "a,b\n1,2\n".encode("utf-16")), CSV, "holds zero bytes, so"),
    "fields": (table("2020-01-01,1", "2020-01-02,1,2"), CSV, "table.csv:2 has 2 fields, but there"),
    "no test targets": (
        table(*days(22), *(f"2020-01-{d},1," for d in range(23, 29))),
        (*CSV, "--targets=rain"),
        "Nothing can be scored in the test part, lines 23 to 27 of the series: all targets are",
    ),
    "no validation targets": (
        table(*days(17), *(f"2020-01-{d},1," for d in range(18, 24)), *days(28)[23:]),
        (*CSV, "--targets=rain"),
        "Nothing can be scored in the validation part, lines 17 to 22 of the series",
    ),
    "no training targets": (
        table(*(f"2020-01-{d + 1:02},1,{d if d in (0, 20, 25) else ''}" for d in range(28))),
        (*CSV, "--targets=rain"),
        "Nothing can be scored in the training part, lines 0 to 16 of the series",
    ),
    "unknown target": ({}, (forecast, "--targets=snow"), "There is no column 'snow'. There are: e"),
}


def fill(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(path) if content is None else path.write_bytes(content)


@pytest.mark.parametrize("case", CASES)
def test_data_are_checked_before_anything_is_written(tmp_path, case):
    files, (module, *argv), message = CASES[case]
    fill(tmp_path, files)
    before = contents(tmp_path)
    done = command_line(module, *TINY, "--logdir=run", *argv, cwd=tmp_path)
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert (done.status, done.stdout) == (1, "")
    assert contents(tmp_path) == before


# What tools.prepare has made of a text, then changed; a command on it, and the message.
PREPARED = {
    "reordered": (
        "words",
        lambda out: reorder(out / "vocabulary.json"),
        (),
        "vocabulary.json in 'out' is of another corpus: its ids mean other tokens.",
    ),
    "no vocabulary": (
        "words",
        lambda out: (out / "vocabulary.json").unlink(),
        (),
        "'out' has lost its vocabulary.json. The folder is damaged; prepare it again with",
    ),
    "another's vocabulary": (
        "words",
        lambda out: tbptt.Vocabulary.of("abc", "characters").save(out / "vocabulary.json"),
        (),
        "vocabulary.json in 'out' is of another corpus",
    ),
    "binary description": (
        "words",
        lambda out: (out / "corpus.json").write_bytes(b"\xff\x00"),
        (),
        "'out/corpus.json' is not UTF-8",
    ),
    "large id": (
        "words",
        lambda out: poke(out / "tokens.bin"),
        (),
        "tokens.bin or ends.bin in 'out' was changed. The folder is damaged; prepare it again",
    ),
    "other tokens": (
        "words",
        lambda out: None,
        ("--tokens=bytes",),
        "--tokens=bytes is not what 'out' is of, which is words. Leave --tokens out",
    ),
    "words to keep": (
        "words",
        lambda out: None,
        ("--tokens=words", "--vocabulary_size=5"),
        "--vocabulary_size has no effect with --prepared",
    ),
    "by appearance": (
        "words",
        lambda out: earlier(out),
        ("--readout=adaptive",),
        "--readout=adaptive needs ids sorted by frequency, as words have them, and words of this "
        "corpus have not. Prepare it again, which sorts them, or use chunked or full.",
    ),
    "adaptive characters": (
        "characters",
        lambda out: None,
        ("--readout=adaptive",),
        "and characters of this corpus have not. Use chunked or full.",
    ),
    "documents of one": (
        "characters",
        lambda out: None,
        ("--test_documents=1",),
        "'out' is one document, which --valid_fraction and --test_fraction split.",
    ),
}


def reorder(path):
    vocabulary = tbptt.Vocabulary.load(path)
    tbptt.Vocabulary(vocabulary.kind, vocabulary.tokens[::-1]).save(path)


def poke(path):
    tokens = np.fromfile(path, np.uint32)
    tokens[len(tokens) // 2] = 1_000_000
    tokens.tofile(path)


def earlier(out):
    """As version 1 of `corpus.json` was, when words were numbered by appearance."""
    about = json.loads((out / "corpus.json").read_text())
    del about["vocabulary"]
    (out / "corpus.json").write_text(json.dumps(about | {"version": 1}))


@pytest.mark.parametrize("case", PREPARED)
def test_prepared_corpora_are_checked(tmp_path, case):
    kind, change, argv, message = PREPARED[case]
    (tmp_path / "a.txt").write_text(TEXT)
    prepare.prepare(tmp_path / "out", [tmp_path / "a.txt"], kind, False, None)
    change(tmp_path / "out")
    before = contents(tmp_path)
    module, *flags = LM
    done = command_line(
        module, *TINY, "--logdir=run", *flags, "--prepared=out", *argv, cwd=tmp_path
    )
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert (done.status, done.stdout) == (1, "")
    assert contents(tmp_path) == before


def test_large_id_of_a_large_corpus_is_told_when_it_is_read(tmp_path, monkeypatch):
    """Of a corpus that is too large to be read whole when it is opened."""
    (tmp_path / "a.txt").write_text(TEXT)
    prepare.prepare(tmp_path / "out", [tmp_path / "a.txt"], "words", False, None)
    poke(tmp_path / "out" / "tokens.bin")
    monkeypatch.setattr(prepared, "CHECKED", 0)
    module, *flags = LM
    done = command_line(module, *TINY, "--logdir=run", *flags, "--prepared=out", cwd=tmp_path)
    assert done.status == 1
    assert re.search(r"error: Token 78 is 1000000, but ids must be from 0 to \d+\.", done.stderr)


def test_vocabulary_that_cannot_be_written_is_told_and_the_same_command_goes_on(tmp_path):
    (tmp_path / "a.txt").write_text(" ".join(f"word{k}" for k in range(3000)))
    module, *flags = LM
    command = (*TINY, "--logdir=run", *flags, "--corpus=a.txt", "--tokens=words", "--shuffle=none")
    with full_disk(10_000):
        done = command_line(module, *command, cwd=tmp_path)
    assert done.status == 1
    assert "error: 'run/preprocessing.json' cannot be written: File too large." in done.stderr
    assert sorted(contents(tmp_path / "run")) == ["lock", "model.json", "settings.json"]
    assert command_line(module, *command, cwd=tmp_path).status == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(task="recall"), r"task \('recall'\) must be one of copy, adding"),
        (dict(shortest=9, longest=8), r"longest \(8\) must be at least 9"),
        (dict(steps=15), r"steps \(15\) must be at least 20"),
        (dict(steps=50, cuts="60"), r"steps \(50\) must be at least 60"),
        (dict(cuts="5,x"), "--cuts has 'x', but must be like 15, 15/5 or 15f"),
        (dict(cell="rnn"), r"cell \('rnn'\) must be one of lstm, gru"),
        (dict(dropout=-0.1), r"dropout \(-0.1\) must be at least 0"),
    ],
)
def test_memory_checks_its_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        memory.Settings(**settings)
