"""The tools do what their docstrings say."""

import numpy as np

from tbptt.streams.corpus import split_words
from tools import flatness, synthetic_words


def test_synthetic_corpus_has_the_size_and_the_words_it_promises():
    text = synthetic_words.sentences(np.random.default_rng(0), 50_001)
    words = split_words(text)
    assert len(words) == 50_001
    assert 9_000 < len(set(words)) <= 10_000
    assert max(len(line.split()) for line in text.splitlines()) == synthetic_words.SENTENCE - 1
    assert text.endswith("\n")


def test_flatness_measures_time_and_memory(tmp_path):
    path = tmp_path / "tokens.bin"
    flatness.write_tokens(path, 40_000)
    assert path.stat().st_size == 80_000
    found = flatness.measure(path)
    assert 0 < found["ms"] < 1e4
    assert found["resident_mb"] > 100
