"""`KeepBest`: keeps a copy of the parameters with the lowest validation loss."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tbptt.variables import named_parameters


class KeepBest:
    """Keeps a copy of the parameters with the lowest figure so far; checkpoints can save it.

    Attributes:
      figure: the lowest figure so far, usually a validation loss.
      step: the step at which it was seen.
    """

    def __init__(self, module: tf.Module) -> None:
        self._module = module
        self._values: list[Any] = []
        self.figure = float("inf")
        self.step = 0

    def offer(self, figure: float, step: int) -> bool:
        """Keeps the current parameters if `figure` is finite and the lowest so far.

        Returns:
          Whether they were kept.
        """
        if not (np.isfinite(figure) and figure < self.figure):
            return False
        self.figure, self.step = figure, step
        self._values = [variable.numpy() for variable in self._module.trainable_variables]
        return True

    def parameters(self) -> dict[str, np.ndarray]:
        """Returns the parameters of the lowest figure by name; empty if there is no figure yet."""
        variables: Sequence[tf.Variable] = self._module.trainable_variables
        kept = {id(v): value for v, value in zip(variables, self._values, strict=False)}
        named = named_parameters(self._module)
        return {name: kept[id(v)] for name, v in named.items() if id(v) in kept}

    def apply(self) -> None:
        """Gives the module the parameters of the lowest figure, if there is one yet."""
        for variable, value in zip(self._module.trainable_variables, self._values, strict=False):
            variable.assign(value)

    def snapshot(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Returns the kept parameters, their figure and step, for a checkpoint."""
        arrays = {str(k): value for k, value in enumerate(self._values)}
        return arrays, {"figure": self.figure if arrays else None, "step": self.step}

    def restore(self, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
        """Restores what `snapshot` returned; raises ValueError if it is of another module."""
        values = [arrays[str(k)] for k in range(len(arrays))]
        there = [list(value.shape) for value in values]
        here = [list(variable.shape) for variable in self._module.trainable_variables]
        if values and there != here:
            raise ValueError(f"parameters of shapes {there} in the record, {here} in the model.")
        self._values = values
        self.figure = float("inf") if facts["figure"] is None else facts["figure"]
        self.step = facts["step"]
