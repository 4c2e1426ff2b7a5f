"""Reading, vocabularies, splits."""

import json

import numpy as np
import pytest

from tbptt import Vocabulary
from tbptt.streams import corpus, files

TEXT = "the cat sat\non the mat\nthe end\n"


@pytest.mark.parametrize("kind", ["characters", "bytes"])
@pytest.mark.parametrize("text", [TEXT, "żółw — 龜 😀\n"])
def test_characters_and_bytes_come_back(kind, text):
    vocabulary = Vocabulary.of(text, kind)
    ids = vocabulary.encode(text)
    assert ids.dtype == np.uint16
    assert ids.max() < len(vocabulary)
    assert vocabulary.decode(ids) == text


def test_words_by_frequency_then_alphabet_with_ends_of_lines():
    vocabulary = Vocabulary.of(TEXT, "words")
    assert vocabulary.tokens == ("<eos>", "the", "cat", "end", "mat", "on", "sat")
    assert vocabulary.encode("the mat\n").tolist() == [1, 4, 0]
    assert vocabulary.decode(vocabulary.encode("the mat\nthe end\n")).strip() == "the mat\nthe end"


def test_rare_words_become_unk():
    vocabulary = Vocabulary.of(TEXT, "words", max_size=3)
    assert vocabulary.tokens == ("<eos>", "the", "<unk>")
    assert vocabulary.encode("the dog\n").tolist() == [1, 2, 0]
    with_unk = Vocabulary.of("a a <unk> <unk> b", "words", max_size=2)
    assert with_unk.tokens == ("<unk>", "a")


def test_large_vocabularies_get_wider_ids():
    text = " ".join(str(i) for i in range(70_000))
    vocabulary = Vocabulary.of(text, "words")
    ids = vocabulary.encode(text)
    assert ids.dtype == np.int32
    assert ids.max() == 69_999


def test_unknown_word_without_unk_is_refused_with_its_line():
    vocabulary = Vocabulary.of(TEXT, "words")
    with pytest.raises(ValueError, match=r"The word 'dog' on line 2 .* has no <unk>"):
        vocabulary.encode("the cat\nthe dog\n")
    with pytest.raises(ValueError, match="The word '<eos>' on line 1"):
        Vocabulary.of("a b", "words").encode("a\nb")


def test_unknown_character_is_refused_with_its_line():
    with pytest.raises(
        ValueError, match=r"The character '!' on line 2 is not among the \d+ tokens"
    ):
        Vocabulary.of(TEXT, "characters").encode("the\ncat!")
    with pytest.raises(ValueError, match="The character 'z' on line 1"):  # above all known ones
        Vocabulary.of(TEXT, "characters").encode("z")


@pytest.mark.parametrize("kind", corpus.KINDS)
def test_saved_vocabulary_comes_back(tmp_path, kind):
    vocabulary = Vocabulary.of(TEXT + "ü", kind)
    vocabulary.save(tmp_path / "v.json")
    assert json.loads((tmp_path / "v.json").read_text())["kind"] == kind
    assert Vocabulary.load(tmp_path / "v.json") == vocabulary


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"kind": "words"}', '{"kind": "words", "tokens": "abc"}',
     '{"kind": "words", "tokens": [1]}', '{"kind": "syllables", "tokens": ["a"]}',
     '{"kind": "words", "tokens": ["a", "a"]}'],
)  # fmt: skip
def test_file_that_holds_no_vocabulary_is_refused(tmp_path, content):
    (tmp_path / "v.json").write_text(content)
    with pytest.raises(ValueError, match=r"must be a vocabulary|must be one of|twice"):
        Vocabulary.load(tmp_path / "v.json")


def test_unknown_kind_is_refused():
    with pytest.raises(ValueError, match=r"kind of tokens \('syllables'\) must be one of"):
        Vocabulary.of(TEXT, "syllables")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"There is no file '.*text'\. Give the path"),
        (b"", "is empty. Give the path of a UTF-8 text"),
        (b"good\xe9", r"is not UTF-8: byte 0xe9 at offset 4\. Convert it"),
    ],
)
def test_text_files_that_cannot_be_read_are_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "text").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        files.read_text(tmp_path / "text")


def test_python_corpora_are_there():
    docs = corpus.python_docs()
    assert len(docs) > 100_000
    assert docs == corpus.python_docs()
    source = corpus.python_source()
    assert len(source) > 1_000_000
    assert "def " in source


def test_split_keeps_order_and_everything():
    ids = np.arange(1003)
    parts = corpus.split(ids, 0.05, 0.1)
    assert [len(part) for part in parts] == [853, 50, 100]
    assert np.concatenate(parts).tolist() == ids.tolist()


@pytest.mark.parametrize(
    ("valid", "test", "message"),
    [(0.6, 0.4, "leave nothing"), (1.0, 0.0, "valid_fraction"), (0.1, -0.1, "test_fraction")],
)
def test_split_that_leaves_nothing_is_refused(valid, test, message):
    with pytest.raises(ValueError, match=message):
        corpus.split(np.arange(100), valid, test)
