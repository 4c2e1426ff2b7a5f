"""A language model and its exports, made once."""

import numpy as np
import pytest

import tbptt
from tbptt.serving.exports import write_export

SEEDS = tbptt.split_seed(tbptt.make_seed(8), 3)
VOCABULARY = tbptt.Vocabulary("characters", tuple("abcdefg"))
RESULT = {"test": 2.5, "metric": "bits_per_character"}


@pytest.fixture(scope="session")
def model():
    """Weights large enough for LiteRT to store them as int8, and for the state to matter."""
    core = tbptt.LSTM(8, 32, seed=SEEDS[0], learn_initial_state=True)
    core.initial_hidden.assign(np.linspace(-0.5, 0.5, 32))
    return tbptt.LanguageModel(7, 8, core, seed=SEEDS[1])


class Exports(dict):
    """The folders of exports by kind, each written when it is first asked for."""

    def __init__(self, model, folder):
        super().__init__()
        self.model, self.folder = model, folder

    def __missing__(self, kind):
        self[kind] = self.folder / kind
        prepared = {"vocabulary": VOCABULARY, "labels": ["x"]}
        write_export(self.model, self[kind], kind, preprocessing=prepared, result=RESULT)
        return self[kind]


@pytest.fixture(scope="session")
def exports(model, tmp_path_factory):
    return Exports(model, tmp_path_factory.mktemp("exports"))
