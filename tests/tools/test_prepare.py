"""A corpus in one pass: what is written, that it goes on where it was, and what is refused."""

import json
import os
import re

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

import tbptt
from tbptt.streams import prepared
from tests.conftest import full_disk
from tests.experiments.conftest import contents, tool_line
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
        tbptt.Segments(tokens, ends),
        rows=1,
        window_length=5,
        vocabulary_size=len(vocabulary),
        boundary=vocabulary.boundary,
    )
    assert stream.segments == 2
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
        for number, segment in enumerate(pieces_of(*where)):
            if number == 1:
                raise Stop
            yield segment

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
    with pytest.raises(ValueError, match="must give a list of integers from 0 to 4,294,967,295"):
        made(tmp_path / "b", [tmp_path / "a.txt"], "tests.tools.test_prepare:wrong_tokenize")


def tokenize(text):
    return [1000 * ord(letter) for letter in text]


def wrong_tokenize(text):
    return [-1 for _ in text]


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def reverse(out):
    vocabulary = tbptt.Vocabulary.load(out / "vocabulary.json")
    tbptt.Vocabulary(vocabulary.kind, vocabulary.tokens[::-1]).save(out / "vocabulary.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda out: (out / "corpus.json").unlink(), "holds no prepared corpus"),
        (
            lambda out: (out / "corpus.json").write_text("{}"),
            "cannot be used: 'version' is missing",
        ),
        (lambda out: (out / "tokens.bin").write_bytes(b"abcd"), "has 2 entries, but corpus.json"),
        (lambda out: (out / "ends.bin").write_bytes(b"abc"), "not a multiple of the 8 bytes"),
        (lambda out: (out / "ends.bin").write_bytes(b""), "ends.bin' is empty"),
        (lambda out: flip(out / "tokens.bin"), "tokens.bin or ends.bin in .* was changed"),
        (lambda out: (out / "corpus.json").write_bytes(b"\xff\0"), "corpus.json' is not UTF-8"),
        (lambda out: (out / "corpus.json").write_text("[]"), "corpus.json' holds a list"),
        (lambda out: (out / "vocabulary.json").unlink(), "has lost its vocabulary.json"),
        (lambda out: flip(out / "vocabulary.json"), "vocabulary.json"),
        (lambda out: reverse(out), "vocabulary.json in .* is of another corpus"),
        (
            lambda out: tbptt.Vocabulary.of("a b", "words").save(out / "vocabulary.json"),
            "vocabulary.json in .* is of another corpus",
        ),
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
    (tmp_path / "b.txt").write_text("another")
    out = tmp_path / "out"
    out.mkdir()
    (out / prepare.STATE).write_text('{"sources": [], "vocabulary": [], "fixed": false}')
    with pytest.raises(ValueError, match="holds an unfinished run on other files"):
        made(out, [tmp_path / "a.txt"])
    os.remove(out / prepare.STATE)
    made(out, [tmp_path / "a.txt"])
    with pytest.raises(ValueError, match="holds a corpus already"):
        made(out, [tmp_path / "b.txt"])
    with pytest.raises(ValueError, match=r"--kind \('letters'\) must be bytes"):
        made(tmp_path / "c", [tmp_path / "a.txt"], "letters")


@pytest.mark.parametrize("existed", [False, True])
@pytest.mark.parametrize(
    ("name", "content", "kind", "message"),
    [
        (
            "b.jsonl",
            b'{"text": "fine"}\n{"text": \n',
            "words",
            r"b\.jsonl:2 is not JSON \(Expecting",
        ),
        ("b.jsonl", b"[" * 100_000, "words", r"b\.jsonl:1 is not JSON \(it is nested too deeply"),
        ("b.jsonl", b'{"text": "\\ud800"}', "words", r"b\.jsonl:1 holds half of a surrogate pair"),
        ("b.jsonl", b'{"tokens": [1]}', "words", r"b\.jsonl:1 has tokens, but a text is needed"),
        ("b.jsonl", b'{"text": " "}', "words", "a document before byte 13 has no words"),
        ("b.txt", b"good\xe9", "characters", "byte 0xe9 at offset 4"),
        ("b.txt", b"   ", "words", "a document before byte 3 has no words"),
        ("b.txt", b"", "words", "is empty. Give the path of a text"),
        (
            "b.txt",
            b"abc",
            "tests.tools.test_prepare:wrong_tokenize",
            "must give a list of integers",
        ),
        ("b.txt", b"abc", "tests.tools.no_such:f", "No module named"),
    ],
)
def test_failed_run_leaves_nothing_behind(tmp_path, name, content, kind, message, existed):
    (tmp_path / name).write_bytes(content)
    out = tmp_path / "out"
    if existed:
        out.mkdir()
    done = tool_line(prepare, f"--out={out}", f"--kind={kind}", str(tmp_path / name), cwd=tmp_path)
    assert done.status == 1
    assert re.search(message, done.stderr)
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert not out.exists() or list(out.iterdir()) == []
    assert out.exists() == existed


def test_folder_of_others_is_left_alone(tmp_path):
    (tmp_path / "a.txt").write_text("some text")
    out = tmp_path / "run"
    out.mkdir()
    (out / "vocabulary.json").write_text("of a run")
    (out / "tokens.bin").write_text("of somebody")
    before = contents(out)
    done = tool_line(prepare, f"--out={out}", "a.txt", cwd=tmp_path)
    assert done.status == 1
    assert "holds files of others ('tokens.bin' is the first)" in done.stderr
    done = tool_line(prepare, "--out=a.txt", "a.txt", cwd=tmp_path)
    assert "--out ('a.txt') is a file" in done.stderr
    assert contents(out) == before


def test_bytes_are_of_any_file(tmp_path):
    content = bytes(range(256)) * 3
    (tmp_path / "a.bin").write_bytes(content)
    made(tmp_path / "out", [tmp_path / "a.bin"], "bytes")
    found = prepared.open_corpus(tmp_path / "out")
    assert found.tokens.tobytes() == content
    made(tmp_path / "lines", [tmp_path / "a.bin"], "bytes", lines=True)
    found = prepared.open_corpus(tmp_path / "lines")
    assert found.tokens[: found.ends[0]].tobytes() == bytes(range(10))


def test_words_are_numbered_by_frequency_wherever_it_is_interrupted(tmp_path, monkeypatch):
    """Killed before the new file counts, after that, and after it took the old one's place."""
    (tmp_path / "a.txt").write_text("c a b\nb a b\nc c c c")
    (tmp_path / "b.txt").write_text("d a")
    paths = [tmp_path / "a.txt", tmp_path / "b.txt"]
    whole = made(tmp_path / "whole", paths, "words")
    found = prepared.open_corpus(tmp_path / "whole")
    assert found.by_frequency
    assert found.vocabulary == tbptt.Vocabulary.of("c a b\nb a b\nc c c c\nd a", "words")
    assert texts(tmp_path / "whole") == ["c a b\nb a b\nc c c c", "d a"]

    class Stop(Exception):
        pass

    def stop(*_):
        raise Stop

    out = tmp_path / "out"
    for module, name in (
        (prepare, "sync"), (prepare.os, "replace"), (prepare, "digest_of"), (prepare, "renumber"),
    ):  # fmt: skip
        with monkeypatch.context() as patched:
            patched.setattr(module, name, stop)
            with pytest.raises(Stop):
                made(out, paths, "words")
    assert made(out, paths, "words") == whole
    assert contents(out) == contents(tmp_path / "whole")


def test_corpus_of_an_earlier_version_is_read_and_not_taken_as_sorted(tmp_path):
    (tmp_path / "a.txt").write_text("b a a")
    made(tmp_path / "out", [tmp_path / "a.txt"], "words")
    about = json.loads((tmp_path / "out" / prepare.ABOUT).read_text())
    del about["vocabulary"]
    (tmp_path / "out" / prepare.ABOUT).write_text(json.dumps(about | {"version": 1}))
    found = prepared.open_corpus(tmp_path / "out")
    assert not found.by_frequency
    assert found.vocabulary.decode(found.tokens) == "b a a"


def test_full_disk_is_told_and_the_same_command_goes_on(tmp_path):
    (tmp_path / "a.txt").write_text("some text " * 10_000)
    command = (f"--out={tmp_path}/out", "--kind=words", str(tmp_path / "a.txt"))
    with full_disk(20_000):
        done = tool_line(prepare, *command, cwd=tmp_path)
    assert done.status == 1
    assert re.search(r"error: .*tokens\.bin cannot be written \(File too large\)", done.stderr)
    assert tool_line(prepare, *command, cwd=tmp_path).status == 0
    done = tool_line(prepare, "--out=/proc/no", str(tmp_path / "a.txt"), cwd=tmp_path)
    assert re.search(r"error: /proc/no cannot be written \(", done.stderr)


def test_file_that_was_cut_after_an_interruption_is_refused(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("some text")
    monkeypatch.setattr(prepare, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        made(tmp_path / "out", [tmp_path / "a.txt"])
    (tmp_path / "out" / prepared.TOKENS).write_bytes(b"ab")
    with pytest.raises(ValueError, match=r"tokens\.bin' was cut since the interruption"):
        made(tmp_path / "out", [tmp_path / "a.txt"])
    (tmp_path / "other").mkdir()
    for content in (b"[]", b"\xff", b'{"a": 1}', b""):
        (tmp_path / "other" / prepare.STATE).write_bytes(content)
        with pytest.raises(ValueError, match=r"unfinished\.json"):
            made(tmp_path / "other", [tmp_path / "a.txt"])


def test_command_line(tmp_path):
    (tmp_path / "a.txt").write_text("some text")
    done = tool_line(prepare, "--out=out", "a.txt", cwd=tmp_path)
    assert done.status == 0
    assert json.loads(done.stdout)["tokens"] == 9
    assert [line for line in done.stderr.split("\r") if line and "reading:" not in line] == []


@pytest.mark.parametrize(
    ("out", "files", "message"),
    [
        (None, [], "error: --out is missing"),
        ("out", [], "error: There are no files"),
        ("out", ["no.txt"], "error: There is no file 'no.txt'. Give the path of a text"),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path, out, files, message):
    path = None if out is None else str(tmp_path / out)
    with flagsaver.flagsaver(out=path), pytest.raises(SystemExit, match=message):
        prepare.main(["prepare", *files])
    assert not (tmp_path / "out").exists()
