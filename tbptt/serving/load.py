"""`load`: makes a trained model from the folder of its run."""

import dataclasses
import os
import pathlib
from typing import Any

from tbptt.checkpoint.parameters import load_parameters
from tbptt.experiment.errors import UsageError
from tbptt.experiment.folder import SETTINGS_FILE, read_result, read_settings
from tbptt.experiment.model_files import (
    MODEL_FILE,
    PARAMETERS_FILE,
    PREPROCESSING_FILE,
    preprocessing_from_json,
    read_versioned,
)
from tbptt.rebuild import rebuild
from tbptt.streams.files import DataError


class LoadError(ValueError):
    """Raised when a folder does not hold a run that can be loaded; the message says why."""


@dataclasses.dataclass(frozen=True)
class LoadedRun:
    """A trained model, and what its run's folder says of it.

    Attributes:
      model: the model, with the run's best parameters.
      preprocessing: how its data were prepared, by name: `vocabulary`, a `Vocabulary`;
        `standardizer`, a `Standardizer`; `labels`, the names of classes; and what else the run's
        script gave.
      settings: the run's settings, and `experiment`, by name.
      result: the run's result, as in `result.json`; empty if the run is not finished.
      folder: of the run.
    """

    model: Any
    preprocessing: dict[str, Any]
    settings: dict[str, Any]
    result: dict[str, Any]
    folder: pathlib.Path


def load(
    logdir: str | os.PathLike[str], model: Any = None, *, unfinished: bool = False
) -> LoadedRun:
    """Makes the model of a run again, with its best parameters, from the run's folder alone.

    Args:
      logdir: the folder of a run of any experiment or script that calls `train_and_test` or `fit`.
      model: a model as the run's script makes it, whose parameters are replaced. None: it is made
        from `model.json`, which a model with a cell or class of your own cannot be.
      unfinished: whether to take the best parameters so far of a run that is not finished.

    Raises:
      LoadError: the folder holds no run, or an unfinished one; a file is damaged or of another
        version; or the model has parts that are not this library's.
    """
    folder = pathlib.Path(logdir)
    settings, result = _settings(folder), _result(folder)
    if result is None and not unfinished:
        raise LoadError(
            f"The run in {str(folder)!r} is not finished. Give its command again, and it goes on; "
            "or take the best parameters so far, with unfinished=True."
        )
    if not (folder / PARAMETERS_FILE).is_file():
        raise LoadError(
            f"{str(folder)!r} has no {PARAMETERS_FILE}: "
            + (
                "the run has not been validated yet. Let it go on."
                if result is None
                else "its experiment keeps no model, or the file was removed."
            )
        )
    try:
        source = str(folder / PREPROCESSING_FILE)
        content = read_versioned(folder, PREPROCESSING_FILE)
        preprocessing = preprocessing_from_json(content, repr(source))
        if model is None:
            model = _model(folder)
        load_parameters(folder / PARAMETERS_FILE, model)
    except (OSError, ValueError) as error:
        raise LoadError(str(error)) from None
    return LoadedRun(model, preprocessing, settings, result or {}, folder)


def _settings(folder: pathlib.Path) -> dict[str, Any]:
    """Returns the settings of the run in a folder; raises LoadError if it holds none."""
    try:
        settings = read_settings(folder)
    except UsageError as error:
        raise LoadError(str(error)) from None
    if settings is not None:
        return settings
    if not folder.is_dir():
        raise LoadError(f"There is no folder {str(folder)!r}. Give the --logdir of a run.")
    runs = sorted(str(path.parent) for path in folder.glob(f"*/{SETTINGS_FILE}"))
    if runs:
        raise LoadError(
            f"{str(folder)!r} holds {len(runs)} runs. Give the folder of one of them, as {runs[0]}."
        )
    raise LoadError(f"{str(folder)!r} holds no run: there is no {SETTINGS_FILE}.")


def _result(folder: pathlib.Path) -> dict[str, Any] | None:
    try:
        return read_result(folder)
    except UsageError as error:
        raise LoadError(str(error)) from None


def _model(folder: pathlib.Path) -> Any:
    """Makes the model that `model.json` describes."""
    try:
        return rebuild(read_versioned(folder, MODEL_FILE).get("model"))
    except DataError:
        raise
    except ValueError as error:
        raise LoadError(
            f"{str(folder / MODEL_FILE)!r}: {error} Make the model as the run's script does, and "
            "give it: load(logdir, model=model)."
        ) from None
