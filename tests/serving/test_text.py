"""Prompts, and text that is decoded as it comes."""

import numpy as np
import pytest

from tbptt.serving.text import TextDecoder, encode_prompt, start_of_text
from tbptt.streams.corpus import EOS, UNK, Vocabulary

BYTES = Vocabulary.of("", "bytes")
LETTERS = Vocabulary("characters", ("\n", "a", "b", "é"))
WORDS = Vocabulary("words", ("the", "cat", EOS))


def decoded(vocabulary, ids, sizes, **options):
    decoder, parts, begin = TextDecoder(vocabulary, **options), [], 0
    while begin < len(ids):
        size = next(sizes)
        parts.append(decoder(ids[begin : begin + size]))
        begin += size
    return "".join(parts) + decoder.end()


def test_pieces_of_any_size_give_the_whole_text():
    rng = np.random.default_rng(0)
    for text in ("", "plain", "naïve: 日本語 🙂\n", "é" * 20):
        for _ in range(20):
            assert decoded(BYTES, BYTES.encode(text), iter(rng.integers(1, 4, 100))) == text
    random = rng.integers(0, 256, 2000)
    assert decoded(BYTES, random, iter(rng.integers(1, 4, 2000))) == BYTES.decode(random)


def test_bytes_that_are_no_text_are_replaced():
    assert decoded(BYTES, [0xC3], iter([1])) == "\ufffd"  # it ends inside of a character
    assert decoded(BYTES, [0xC3, 0x41], iter([1, 1])) == "\ufffdA"
    # The end of a character that the prompt began.
    assert decoded(BYTES, [0xA9, 0x41], iter([1, 1]), before=[0xC3]) == "éA"


def test_words_have_blanks_between_and_lines_have_none_around():
    ids = WORDS.encode("the cat\nthe\n\ncat")
    for size in (1, 2, 9):
        assert decoded(WORDS, ids, iter([size] * 9)) == "the cat\nthe\n\ncat"
    assert decoded(WORDS, [1], iter([1]), before=[0]) == " cat"
    assert decoded(WORDS, [1], iter([1]), before=[2]) == "cat"


def test_a_prompt_is_encoded_and_an_empty_one_is_the_start_of_a_text():
    assert encode_prompt(LETTERS, "abé").tolist() == [1, 2, 3]
    assert encode_prompt(BYTES, "é\udcff").tolist() == [0xC3, 0xA9, 0xFF]  # byte 255 of a terminal
    assert encode_prompt(WORDS, "the\ncat").tolist() == [0, 2, 1]
    assert encode_prompt(Vocabulary("words", ("a", UNK)), "a b").tolist() == [0, 1]
    for vocabulary, start in ((LETTERS, 0), (BYTES, 10), (WORDS, 2)):
        assert encode_prompt(vocabulary, "").tolist() == [start]
    assert start_of_text(Vocabulary("characters", ("\0", "\n", "a"))) == 0
    assert start_of_text(Vocabulary("characters", ("a", "b"))) == 0


def test_tokens_that_the_model_does_not_know_are_named():
    message = "The text has 'x', 'ß', which the model does not know: its 4 characters are those"
    with pytest.raises(ValueError, match=message):
        encode_prompt(LETTERS, "axbßx")
    with pytest.raises(ValueError, match=r"has 'dog', which .* its 3 words"):
        encode_prompt(WORDS, "the dog")
