"""`open_export`: opens an export of any kind, after verifying it; `Export` runs it."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from tbptt import checks
from tbptt.experiment.model_files import preprocessing_from_json
from tbptt.serving.exports import lite, saved_model, stablehlo
from tbptt.serving.exports.description import read_description
from tbptt.serving.exports.errors import ExportError
from tbptt.serving.exports.interface import Arrays, Interface
from tbptt.types import Nest


class Runner(Protocol):
    """Runs an export: any number of steps of any number of rows."""

    def initial_state(self, rows: int) -> Arrays:
        """Returns the state of so many rows that have read nothing, by name."""

    def run(self, inputs: Arrays, reset: np.ndarray, state: Arrays) -> tuple[Arrays, Arrays]:
        """Runs the steps of `inputs [T, B, ...]`; returns outputs and the state."""


KINDS = {
    "saved_model": "any number of steps and rows, by TensorFlow",
    "litert": "one step, by the LiteRT interpreter",
    "litert_float16": "the same with weights of half the size",
    "litert_int8": "the same with weights of a quarter of the size, and some loss",
    "stablehlo": "one step, by any XLA compiler",
}
"""The kinds of exports, and what each is."""


class Export:
    """A model that was exported, with the state in the caller's hands.

    Attributes:
      kind: of `KINDS`.
      description: the content of `description.json`.
      interface: names, shapes and types of what a step reads and returns.
      preprocessing: how data are prepared, by name, as `LoadedRun.preprocessing`.
      folder: where it is.
      runner: runs it, on arrays by name that are not checked.

    Example:

        export = open_export("exported")
        state = export.initial_state(1)
        logits, state = export.step(ids, state)  # ids [T, 1]
    """

    def __init__(
        self,
        runner: Runner,
        description: dict[str, Any],
        interface: Interface,
        preprocessing: dict[str, Any],
        folder: pathlib.Path,
    ) -> None:
        """Makes an export of its parts; `open_export` opens one."""
        self.runner = runner
        self.kind: str = description["kind"]
        self.description = description
        self.interface = interface
        self.preprocessing = preprocessing
        self.folder = folder

    def initial_state(self, rows: int) -> Arrays:
        """Returns the state of `rows` rows that have read nothing, arrays `[rows, ...]` by name."""
        checks.check_at_least("rows", rows, 1)
        return self.runner.initial_state(rows)

    def step(
        self, inputs: Nest, state: Mapping[str, np.ndarray], reset: np.ndarray | None = None
    ) -> tuple[Any, Arrays]:
        """Reads the next steps of all rows.

        Args:
          inputs: `[T, B, ...]`, any T and B of 1 or more; several arrays by name.
          state: the state of the rows, by name.
          reset: `[T, B]` bool: row b takes step t from the initial state. None: no row does.

        Returns:
          The outputs `[T, B, ...]`, or several by name, and the state after the last step.

        Raises:
          ValueError: a shape, type or value does not fit; the message says what is needed.
        """
        given = self.interface.checked_inputs(inputs)
        steps, rows = next(iter(given.values())).shape[:2]
        before = self.interface.checked_state(state, rows)
        starts = self.interface.checked_reset(reset, steps, rows)
        outputs, after = self.runner.run(given, starts, before)
        return (outputs if len(outputs) > 1 else next(iter(outputs.values()))), after


def open_export(folder: str | os.PathLike[str]) -> Export:
    """Opens an export of any kind.

    A SavedModel is a program that TensorFlow runs, so open those that you trust.

    Args:
      folder: a folder that `write_export` or `tools/export.py` has written.

    Raises:
      ExportError: there is no export, a file is damaged or missing, or it is of another version.
    """
    path = pathlib.Path(folder)
    content = read_description(path)
    interface = Interface.from_json(content["interface"])
    try:
        preprocessing = preprocessing_from_json(content["preprocessing"], repr(str(path)))
    except ValueError as error:
        raise ExportError(str(error)) from None
    return Export(_runner(path, content, interface), content, interface, preprocessing, path)


def _runner(folder: pathlib.Path, content: dict[str, Any], interface: Interface) -> Runner:
    """Loads an export's files.

    Raises:
      ExportError: the kind is not known, or the files cannot be loaded.
    """
    kind, batch = content["kind"], content["batch"]
    if kind not in KINDS:
        raise ExportError(
            f"{str(folder)!r} is of kind {kind!r}, and this tbptt knows {', '.join(KINDS)}. Use a "
            "newer tbptt."
        )
    try:
        if kind == "saved_model":
            return saved_model.Runner(folder, interface)
        if kind == "stablehlo":
            names = {name: [str(x) for x in content[name]] for name in ("arguments", "results")}
            return stablehlo.Runner(folder, interface, batch, **names)
        return lite.Runner(folder, interface, batch)
    except ExportError:
        raise
    except Exception as error:  # TensorFlow and the interpreter raise errors of several types
        raise ExportError(
            f"{str(folder)!r} cannot be loaded: {error} Write it again with this TensorFlow."
        ) from None
