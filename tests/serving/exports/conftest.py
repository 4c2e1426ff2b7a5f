"""A language model and its exports of every kind, made once."""

import numpy as np
import pytest

import tbptt
from tbptt.serving.exports import KINDS, write_export

SEEDS = tbptt.split_seed(tbptt.make_seed(8), 3)
VOCABULARY = tbptt.Vocabulary("characters", tuple("abcdefg"))
RESULT = {"test": 2.5, "metric": "bits_per_character"}


@pytest.fixture(scope="session")
def model():
    """Weights large enough for LiteRT to store them as int8, and for the state to matter."""
    core = tbptt.LSTM(8, 32, seed=SEEDS[0], learn_initial_state=True)
    core.initial_hidden.assign(np.linspace(-0.5, 0.5, 32))
    return tbptt.LanguageModel(7, 8, core, seed=SEEDS[1])


@pytest.fixture(scope="session")
def exports(model, tmp_path_factory):
    """The folders of exports, by kind."""
    folder = tmp_path_factory.mktemp("exports")
    for kind in KINDS:
        write_export(
            model,
            folder / kind,
            kind,
            preprocessing={"vocabulary": VOCABULARY, "labels": ["x"]},
            result=RESULT,
        )
    return {kind: folder / kind for kind in KINDS}
