"""A corpus in one pass: what is written, that it goes on where it was, and what is refused."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

import tbptt
from tbptt.streams import prepared
from tools import prepare


@pytest.fixture(autouse=True)
def parsed_flags():
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["prepare"])


def made(out, paths, kind="characters", lines=False, vocabulary=None):
    return prepare.prepare(out, paths, kind, lines, vocabulary)


def texts(out):
    found = prepared.open_corpus(out)
    vocabulary, tokens, ends = found.vocabulary, found.tokens, found.ends
    return [vocabulary.decode(tokens[b:e]) for b, e in zip([0, *ends[:-1]], ends, strict=True)]


@pytest.mark.parametrize("kind", ["bytes", "characters", "words"])
def test_what_went_in_comes_out(tmp_path, kind):
    one, two = tmp_path / "a.txt", tmp_path / "b.txt"
    one.write_text("the café\nthe end")
    two.write_text("end of the end")
    about = made(tmp_path / "out", [one, two], kind)
    assert about["documents"] == 2
    assert texts(tmp_path / "out") == [one.read_text(), two.read_text()]
    found = prepared.open_corpus(tmp_path / "out")
    vocabulary, tokens, ends = found.vocabulary, found.tokens, found.ends
    assert isinstance(tokens, np.memmap)
    stream = tbptt.DocumentStream(
        tbptt.Pieces(tokens, ends),
        rows=1,
        window_length=5,
        vocabulary_size=len(vocabulary),
        boundary=vocabulary.boundary,
    )
    assert stream.pieces == 2
    assert not (tmp_path / "out" / prepare.STATE).exists()


def test_lines_and_json_lines_are_documents(tmp_path):
    (tmp_path / "a.txt").write_text("emma\n\nolivia\r\n")
    (tmp_path / "b.jsonl").write_text('{"text": "x\\ny"}\n')
    made(tmp_path / "out", [tmp_path / "a.txt", tmp_path / "b.jsonl"], lines=True)
    assert texts(tmp_path / "out") == ["emma", "olivia", "x\ny"]


def test_blocks_and_interruptions_change_nothing(tmp_path, monkeypatch):
    """Interrupted at every block in turn: the same files as in one go."""
    paths = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for seed, path in enumerate(paths):
        letters = np.random.default_rng(seed).choice(list("abcdé \n"), 3000)
        path.write_text("".join(letters))
    whole = made(tmp_path / "whole", paths, "words")
    monkeypatch.setattr(prepare, "BLOCK", 500)
    monkeypatch.setattr(prepare, "SAVE_EVERY", 1)

    class Stop(Exception):
        pass

    pieces_of, stops = prepare.pieces_of, 0

    def stopping(*where):
        for number, piece in enumerate(pieces_of(*where)):
            if number == 1:
                raise Stop
            yield piece

    for _ in range(100):
        monkeypatch.setattr(prepare, "pieces_of", stopping)
        try:
            about = made(tmp_path / "out", paths, "words")
            break
        except Stop:
            stops += 1
            with (tmp_path / "out" / prepared.TOKENS).open("ab") as file:
                file.write(b"half a block")  # written, but not noted when it was killed
    assert stops > 10
    assert about == whole


def test_a_vocabulary_that_is_given_is_kept(tmp_path):
    (tmp_path / "a.txt").write_text("the cat the dog")
    vocabulary = tbptt.Vocabulary("words", ("<eos>", "<unk>", "the", "cat"))
    vocabulary.save(tmp_path / "v.json")
    made(tmp_path / "out", [tmp_path / "a.txt"], "words", vocabulary=str(tmp_path / "v.json"))
    assert prepared.open_corpus(tmp_path / "out").tokens.tolist() == [2, 3, 2, 1]
    tbptt.Vocabulary("words", ("the",)).save(tmp_path / "v.json")
    with pytest.raises(ValueError, match="'cat' is not in --vocabulary, which has no <unk>"):
        made(tmp_path / "b", [tmp_path / "a.txt"], "words", vocabulary=str(tmp_path / "v.json"))


def test_a_tokenizer_of_ones_own(tmp_path):
    (tmp_path / "a.txt").write_text("abc")
    made(tmp_path / "out", [tmp_path / "a.txt"], "tests.tools.test_prepare:tokenize")
    found = prepared.open_corpus(tmp_path / "out")
    assert found.vocabulary is None
    assert found.tokens.tolist() == [97000, 98000, 99000]
    with pytest.raises(ValueError, match="must give a list of integers from 0 on"):
        made(tmp_path / "b", [tmp_path / "a.txt"], "tests.tools.test_prepare:wrong_tokenize")


def tokenize(text):
    return [1000 * ord(letter) for letter in text]


def wrong_tokenize(text):
    return [-1 for _ in text]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda out: (out / "corpus.json").unlink(), "holds no prepared corpus"),
        (lambda out: (out / "corpus.json").write_text("{}"), "cannot be used: KeyError"),
        (lambda out: (out / "tokens.bin").write_bytes(b"abcd"), "has 2 entries, but corpus.json"),
        (lambda out: (out / "ends.bin").write_bytes(b"abc"), "not a multiple of the 8 bytes"),
    ],
)
def test_damaged_folders_are_refused(tmp_path, change, message):
    (tmp_path / "a.txt").write_text("some text")
    made(tmp_path / "out", [tmp_path / "a.txt"])
    change(tmp_path / "out")
    with pytest.raises(ValueError, match=message):
        prepared.open_corpus(tmp_path / "out")


def test_other_files_and_finished_folders_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("some text")
    (tmp_path / "b.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=r"b\.jsonl: the line that ends at byte 27 is not JSON"):
        made(out, [tmp_path / "b.jsonl"])
    prepare.write_json(out / prepare.STATE, {"sources": [], "vocabulary": [], "fixed": False})
    with pytest.raises(ValueError, match="holds an unfinished run on other files"):
        made(out, [tmp_path / "a.txt"])
    os.remove(out / prepare.STATE)
    made(out, [tmp_path / "a.txt"])
    with pytest.raises(ValueError, match="holds a corpus already"):
        made(out, [tmp_path / "a.txt"])
    with pytest.raises(ValueError, match=r"--kind \('letters'\) must be bytes"):
        made(tmp_path / "c", [tmp_path / "a.txt"], "letters")


def test_command_line(tmp_path):
    (tmp_path / "a.txt").write_text("some text")
    command = [sys.executable, "-m", "tools.prepare", f"--out={tmp_path}/out"]
    done = subprocess.run([*command, f"{tmp_path}/a.txt"], capture_output=True, text=True)
    assert json.loads(done.stdout)["tokens"] == 9


@pytest.mark.parametrize(
    ("out", "files", "message"),
    [
        (None, [], "error: --out is missing"),
        ("out", [], "error: There are no files"),
        ("out", ["no.txt"], "error: There is no text in 'no.txt'"),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path, out, files, message):
    path = None if out is None else str(tmp_path / out)
    with flagsaver.flagsaver(out=path), pytest.raises(SystemExit, match=message):
        prepare.main(["prepare", *files])
    assert not (tmp_path / "out").exists()
