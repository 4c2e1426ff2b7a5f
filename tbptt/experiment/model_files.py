"""Writes and reads what a run's folder says of its model: `model.json` and `preprocessing.json`."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tbptt.experiment.folder import write_file
from tbptt.rebuild import describe
from tbptt.streams.corpus import Vocabulary
from tbptt.streams.files import DataError, read_json
from tbptt.streams.series import Standardizer

MODEL_FILE = "model.json"
PREPROCESSING_FILE = "preprocessing.json"
PARAMETERS_FILE = "best_parameters.npz"
VERSION = 1  # of both JSON files


def write_model_files(
    folder: pathlib.Path, model: tf.Module, preprocessing: Mapping[str, Any]
) -> None:
    """Writes the model's description, and how its data were prepared.

    Raises:
      UsageError: a file cannot be written.
      TypeError: an entry of `preprocessing` is no JSON, vocabulary or standardizer.
    """
    content = preprocessing_to_json(preprocessing)
    described = {"version": VERSION, "model": describe(model)}
    write_file(folder / MODEL_FILE, json.dumps(described, indent=2, allow_nan=False))
    write_file(folder / PREPROCESSING_FILE, json.dumps({"version": VERSION, **content}))


def preprocessing_to_json(preprocessing: Mapping[str, Any]) -> dict[str, Any]:
    """Returns vocabularies, standardizers and JSON by name as JSON.

    Raises:
      TypeError: an entry is none of these.

    Example:
      >>> preprocessing_to_json({"labels": ["no", "yes"]})
      {'labels': ['no', 'yes']}
    """
    content = {}
    for name, value in preprocessing.items():
        if isinstance(value, Vocabulary):
            value = {"vocabulary": {"kind": value.kind, "tokens": list(value.tokens)}}
        elif isinstance(value, Standardizer):
            value = {
                "standardizer": {
                    "mean": value.mean.tolist(),
                    "deviation": value.deviation.tolist(),
                    "dtype": value.mean.dtype.name,
                }
            }
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"preprocessing[{name!r}] cannot be written as JSON ({error}). Use a Vocabulary, a "
                "Standardizer, or lists and dictionaries of numbers and strings."
            ) from None
        content[name] = value
    return content


def preprocessing_from_json(content: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Returns what `preprocessing_to_json` was given.

    Raises:
      DataError: an entry is damaged; the message begins with `source`.
    """
    preprocessing: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, dict) and set(value) == {"vocabulary"}:
            value = Vocabulary.from_json(value["vocabulary"], f"{source}, {name!r},")
        elif isinstance(value, dict) and set(value) == {"standardizer"}:
            value = _standardizer(value["standardizer"], f"{source}, {name!r},")
        preprocessing[name] = value
    return preprocessing


def _standardizer(content: Any, source: str) -> Standardizer:
    try:
        dtype = {"float32": np.float32, "float64": np.float64}[content["dtype"]]
        mean, deviation = (np.asarray(content[key], dtype) for key in ("mean", "deviation"))
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{source} has no lists of numbers, mean and deviation.") from None
    fine = mean.ndim == 1 and mean.shape == deviation.shape
    if not (fine and np.isfinite([mean, deviation]).all() and (deviation > 0).all()):
        raise DataError(f"{source} must have as many finite means as deviations above 0.")
    return Standardizer(mean, deviation)


def read_versioned(folder: pathlib.Path, name: str) -> dict[str, Any]:
    """Returns the content of `model.json` or `preprocessing.json` without its version.

    Raises:
      DataError: there is no such file, it is no JSON object, or it is of another version.
    """
    content = read_json(folder / name, "what a run of tbptt has written into its folder")
    version = content.pop("version", None)
    if version != VERSION:
        raise DataError(
            f"{str(folder / name)!r} is of version {version!r}, and this is tbptt for version "
            f"{VERSION}. Use the tbptt that wrote it, or train again."
        )
    return content
