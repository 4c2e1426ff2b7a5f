"""Runs formats that have one step of a fixed number of rows: over any steps and any rows."""

import pathlib
from collections.abc import Callable

import numpy as np

from tbptt.serving.exports.errors import ExportError
from tbptt.serving.exports.interface import Arrays, Interface

INITIAL_STATE = "initial_state.npz"  # the state of one row that has read nothing

OneStep = Callable[[Arrays, np.ndarray, Arrays], tuple[Arrays, Arrays]]
"""`(inputs [1, B, ...], reset [1, B], state) -> (outputs [1, B, ...], state)`, by name."""


def write_initial_state(folder: pathlib.Path, state: Arrays) -> None:
    """Writes the state of one row that has read nothing into the folder of an export."""
    np.savez(folder / INITIAL_STATE, allow_pickle=False, **state)


def read_arrays(path: pathlib.Path) -> Arrays:
    """Returns the arrays of an `.npz` by name."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


class FixedRunner:
    """Runs a step of `batch` rows over any number of steps and rows."""

    def __init__(
        self, one_step: OneStep, folder: pathlib.Path, interface: Interface, batch: int | None
    ) -> None:
        """Reads the initial state.

        Args:
          one_step: runs one step of `batch` rows.
          folder: the folder of the export.
          interface: the interface of the export.
          batch: the number of rows.

        Raises:
          ExportError: there is no batch, or the initial state is not that of the interface.
        """
        if batch is None:
            raise ExportError(
                f"The description of {str(folder)!r} has no batch, which this kind has. Write the "
                "export again."
            )
        self._one_step, self._interface, self._batch = one_step, interface, batch
        try:
            self._initial = interface.checked_state(read_arrays(folder / INITIAL_STATE), 1)
        except ValueError as error:
            raise ExportError(f"{INITIAL_STATE} in {str(folder)!r}: {error}") from None

    def initial_state(self, rows: int) -> Arrays:
        """Returns the state of so many rows that have read nothing."""
        return {name: np.repeat(leaf, rows, axis=0) for name, leaf in self._initial.items()}

    def run(self, inputs: Arrays, reset: np.ndarray, state: Arrays) -> tuple[Arrays, Arrays]:
        """Runs the steps of `inputs [T, B, ...]`; returns outputs and the state."""
        steps, rows = reset.shape
        outputs = {
            leaf.name: np.empty([steps, rows, *leaf.shape], leaf.dtype)
            for leaf in self._interface.outputs
        }
        after = {name: np.empty_like(leaf) for name, leaf in state.items()}
        for first in range(0, rows, self._batch):
            some = slice(first, min(first + self._batch, rows))
            count = some.stop - first
            filled = np.minimum(np.arange(first, first + self._batch), rows - 1)
            piece = {name: leaf[filled] for name, leaf in state.items()}
            for t in range(steps):
                given = {name: x[t : t + 1, filled] for name, x in inputs.items()}
                found, piece = self._one_step(given, reset[t : t + 1, filled], piece)
                for name, leaf in found.items():
                    outputs[name][t, some] = leaf[0, :count]
            for name, leaf in piece.items():
                after[name][some] = leaf[:count]
        return outputs, after
