"""Writes a word corpus of the Penn Treebank's size for timing, because the treebank is not free.

    python -m tools.bench.synthetic_words --folder=/tmp/words

929,589 training, 73,760 validation and 82,430 test tokens, `<eos>` included, of 10,000
words by Zipf's law, in files of one sentence a line: train.txt, valid.txt, test.txt. The
words are random: only their frequencies can be learnt.
"""

import pathlib

import numpy as np
from absl import app, flags

FOLDER = flags.DEFINE_string("folder", None, "Folder for the three files.")
SIZES = {"train": 929_589, "valid": 73_760, "test": 82_430}
WORDS, SENTENCE = 9_999, 22  # <eos> is the ten-thousandth, and ends a sentence


def sentences(rng: np.random.Generator, tokens: int) -> str:
    """Returns lines of random words, `tokens` words and line ends in all."""
    frequency = 1.0 / np.arange(1, WORDS + 1)
    ids = rng.choice(WORDS, tokens, p=frequency / frequency.sum())
    ids[:WORDS] = np.arange(WORDS)  # nearly all words are in every part
    words = np.char.add("w", ids.astype(str)).astype(object)
    words[SENTENCE - 1 :: SENTENCE] = "\n"
    words[-1] = "\n"
    return " ".join(words).replace(" \n ", "\n").replace(" \n", "\n")


def main(_: list[str]) -> None:
    """Writes the training, the validation and the test file."""
    folder = pathlib.Path(FOLDER.value)
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for name, tokens in SIZES.items():
        (folder / f"{name}.txt").write_text(sentences(rng, tokens), "utf-8")


if __name__ == "__main__":
    flags.mark_flag_as_required("folder")
    app.run(main)
