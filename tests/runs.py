"""Makes the folders of finished runs without training."""

import json
import pathlib
from typing import Any

import tbptt
from tbptt.experiment.model_files import write_model_files
from tbptt.losses import binary_cross_entropy

SEED = tbptt.make_seed(0)


def make_run(folder: pathlib.Path, model: Any, preprocessing: dict, **settings: Any) -> None:
    """Writes the folder of a finished run of a model with these settings."""
    folder.mkdir(parents=True)
    (folder / "settings.json").write_text(json.dumps(settings))
    write_model_files(folder, model, preprocessing)
    tbptt.save_parameters(folder / "best_parameters.npz", model)
    (folder / "result.json").write_text("{}")


def language_model(vocabulary: tbptt.Vocabulary) -> tbptt.LanguageModel:
    """Returns a small model of these tokens, which are about equally probable."""
    core = tbptt.LSTM(3, 8, seed=SEED)
    return tbptt.LanguageModel(len(vocabulary), 3, core, seed=SEED)


def language_run(folder: pathlib.Path, text: str) -> None:
    """Writes the run of a language model of the characters of a text."""
    vocabulary = tbptt.Vocabulary.of(text, "characters")
    make_run(folder, language_model(vocabulary), {"vocabulary": vocabulary})


def music_run(folder: pathlib.Path) -> None:
    """Writes a run of `experiments.music` on the canons that it makes."""
    model = tbptt.SequenceModel(tbptt.GRU(88, 3, seed=SEED), 88, binary_cross_entropy, seed=SEED)
    make_run(folder, model, {}, experiment="music", keys=88, data="")
