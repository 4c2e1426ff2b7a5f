"""`write_export`: writes a model in any kind, loads it again and compares it, or leaves nothing."""

import math
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tbptt import checks
from tbptt.experiment.model_files import preprocessing_to_json
from tbptt.serving.exports import lite, saved_model, stablehlo
from tbptt.serving.exports.data import example_steps
from tbptt.serving.exports.description import read_description, write_description
from tbptt.serving.exports.drift import Drift, follow
from tbptt.serving.exports.errors import ExportError
from tbptt.serving.exports.opened import KINDS, Export, open_export
from tbptt.serving.exports.original import Original, scores_of
from tbptt.serving.exports.program import Program
from tbptt.streams.corpus import Vocabulary
from tbptt.types import Model, Nest

# The largest difference from the model that is allowed, see `Drift.outputs`, by kind.
TOLERANCES = {
    "saved_model": 1e-5,
    "litert": 1e-4,
    "litert_float16": 1e-2,
    "litert_int8": 0.2,
    "stablehlo": 1e-4,
}
LOWERED = 5e-2  # of a model that computes products in bfloat16 or float16
PARTIAL = ".partial"  # the suffix of an export that is not completely written
CHECKED_ROWS = 2


def write_export(
    model: Model,
    folder: str | os.PathLike[str],
    kind: str = "saved_model",
    *,
    preprocessing: Mapping[str, Any] | None = None,
    result: Mapping[str, Any] | None = None,
    example: Nest | None = None,
    batch: int = 1,
    tolerance: float | None = None,
    checked_steps: int = 64,
    seed: int = 0,
) -> Export:
    """Exports a model, and compares the export with it, step by step.

    The export is loaded again, and reads the same steps as the model, with resets: ids that a
    language model writes itself, or random numbers. If outputs or state differ by more than the
    tolerance, there is no export.

    Args:
      model: a `Model`; its parameters as they are now.
      folder: a folder that does not exist yet.
      kind: of `KINDS`.
      preprocessing: how data are prepared, by name, as `LoadedRun.preprocessing`.
      result: figures of the run, numbers and strings by name.
      example: inputs of one step or more of one row, `[N, ...]`, see `Program`.
      batch: the number of rows of a step, for all kinds but `saved_model`.
      tolerance: the largest difference allowed, see `Drift.outputs`. None: that of `TOLERANCES`, or
        `LOWERED` for a model that computes in bfloat16 or float16.
      checked_steps: the number of steps that are compared.
      seed: of the steps that are compared.

    Returns:
      The export, opened.

    Raises:
      ExportError: the folder exists, the model cannot be exported, or the export differs.
    """
    checks.check_choice("kind", kind, list(KINDS))
    checks.check_at_least("batch", batch, 1)
    checks.check_at_least("checked_steps", checked_steps, 1)
    path = pathlib.Path(folder)
    if path.exists():
        raise ExportError(
            f"{str(path)!r} is there already, and an export overwrites nothing. Give the name of a "
            "new folder, or remove it."
        )
    program = Program(model, example)
    if tolerance is None:
        tolerance = max(TOLERANCES[kind], LOWERED if program.lowered else 0.0)
    content = _content(program, kind, batch, preprocessing or {}, result or {}, tolerance)
    beside = path.with_name(path.name + PARTIAL)
    shutil.rmtree(beside, ignore_errors=True)
    try:
        beside.mkdir(parents=True)
        content |= _write(program, beside, kind, batch)
        write_description(beside, content)
        export = open_export(beside)
        drift = _compared(program, export, checked_steps, seed)
        _check(kind, drift, tolerance)
        write_description(beside, content | {"checked": _figures(drift)})
        beside.rename(path)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    description = read_description(path)
    return Export(export.runner, description, export.interface, export.preprocessing, path)


def _content(
    program: Program,
    kind: str,
    batch: int,
    preprocessing: Mapping[str, Any],
    result: Mapping[str, Any],
    tolerance: float,
) -> dict[str, Any]:
    """Returns what the description says before the export is written."""
    try:
        prepared = preprocessing_to_json(preprocessing)
    except TypeError as error:
        raise ExportError(str(error)) from None
    return {
        "kind": kind,
        "model": type(program.model).__name__,
        "batch": None if kind == "saved_model" else batch,
        "interface": program.interface.to_json(),
        "preprocessing": prepared,
        "vocabulary_sha256": {
            name: value.sha256
            for name, value in preprocessing.items()
            if isinstance(value, Vocabulary)
        },
        "result": dict(result),
        "tolerance": float(tolerance),
        "tensorflow": tf.__version__,
    }


def _write(program: Program, folder: pathlib.Path, kind: str, batch: int) -> dict[str, Any]:
    """Writes the files of an export; returns further content of its description."""
    if kind == "saved_model":
        saved_model.write(program, folder)
    elif kind == "stablehlo":
        return stablehlo.write(program, folder, batch)
    else:
        lite.write(program, folder, batch, kind.removeprefix("litert").strip("_") or "float32")
    return {}


def _compared(program: Program, export: Export, steps: int, seed: int) -> Drift:
    """Returns the differences of an export from its model over so many steps."""
    data = example_steps(program, steps, CHECKED_ROWS, seed)
    reset = np.random.default_rng(seed).random([steps, CHECKED_ROWS]) < 0.05
    reset[steps // 2, 0] = True
    (drift,) = follow(
        Original(program),
        {export.kind: export.runner},
        data._replace(reset=reset),
        scores=scores_of(program),
        marks=(),
        piece=8,
    )
    return drift


def _check(kind: str, drift: Drift, tolerance: float) -> None:
    """Raises ExportError if an export differs by more than the tolerance."""
    worst = max(drift.outputs, drift.state)
    if not worst <= tolerance:
        raise ExportError(
            f"The export of kind {kind} differs from the model after {drift.steps} steps: outputs "
            f"by {drift.outputs:.2g}, state by {drift.state:.2g}, and {tolerance:g} is allowed. It "
            "was removed. Allow more with tolerance=, or export another kind."
        )


def _figures(drift: Drift) -> dict[str, Any]:
    """Returns the measured differences for the description; figures that are not finite are None.

    The losses are those of the steps that were compared; a language model wrote them itself.
    """
    figures = {
        "steps": drift.steps,
        "rows": CHECKED_ROWS,
        "outputs": drift.outputs,
        "state": drift.state,
        "relative_error": drift.relative_error,
        "loss": drift.loss,
        "original_loss": drift.original_loss,
    }
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in figures.items()
    }
