"""`Interface`: names, shapes and types of what an exported step reads and returns."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tbptt.serving.exports.errors import ExportError
from tbptt.state import named_leaves
from tbptt.types import Nest

RESET = "reset"  # the name of the argument `[T, B]` that says which rows start anew
Arrays = dict[str, np.ndarray]  # by name


@dataclasses.dataclass(frozen=True)
class Leaf:
    """An array that an export reads or returns.

    Attributes:
      name: lower-case letters, digits and underscores.
      dtype: the name of its type.
      shape: of one row; inputs and outputs are `[T, B, *shape]`, parts of the state `[B, *shape]`.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Interface:
    """Everything that a step reads and returns, in the order of its arguments and results.

    Attributes:
      inputs, outputs: `[T, B, ...]`.
      state: `[B, ...]`, an argument and a result of every step, under the same names.
      vocabulary_size: inputs of whole numbers are ids below it. None: not known.
    """

    inputs: tuple[Leaf, ...]
    outputs: tuple[Leaf, ...]
    state: tuple[Leaf, ...]
    vocabulary_size: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the interface as JSON."""
        return {
            **{
                part: [
                    {"name": leaf.name, "dtype": leaf.dtype, "shape": [*axes, *leaf.shape]}
                    for leaf in getattr(self, part)
                ]
                for part, axes in AXES.items()
            },
            RESET: {"name": RESET, "dtype": "bool", "shape": ["T", "B"]},
            "vocabulary_size": self.vocabulary_size,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Interface":
        """Returns what `to_json` was called on.

        Raises:
          ValueError, TypeError, KeyError: it is no interface.
        """
        parts = {
            part: tuple(_leaf(each, len(axes)) for each in content[part])
            for part, axes in AXES.items()
        }
        size = content["vocabulary_size"]
        if size is not None and not (type(size) is int and size > 0):
            raise ValueError(f"vocabulary_size is {size!r}")
        return cls(**parts, vocabulary_size=size)

    def checked_inputs(self, inputs: Nest) -> Arrays:
        """Returns inputs `[T, B, ...]` by name: one array, or as many by name as there are.

        Raises:
          ValueError: a name, shape or type differs, or a value is no number or no id.
        """
        given = inputs if isinstance(inputs, Mapping) else {self.inputs[0].name: inputs}
        found = _by_name("inputs", given, self.inputs)
        sizes = {array.shape[:2] for array in found.values()}
        for leaf, array in zip(self.inputs, found.values(), strict=True):
            _check_shape(leaf, array, ("T", "B"))
            _check_values(leaf, array, self.vocabulary_size)
        if len(sizes) > 1 or 0 in next(iter(sizes)):
            raise ValueError(
                f"The inputs have T and B {sorted(sizes)}, but all must have the same, of 1 or "
                "more."
            )
        return {
            leaf.name: _cast(leaf, array)
            for leaf, array in zip(self.inputs, found.values(), strict=True)
        }

    def checked_state(self, state: Mapping[str, Any], rows: int) -> Arrays:
        """Returns a state `[rows, ...]` by name.

        Raises:
          ValueError: a name, shape or type differs.
        """
        if not isinstance(state, Mapping):
            raise ValueError(
                f"The state is {type(state).__name__}, but must be arrays by name, as "
                "`initial_state` and `step` return it."
            )
        found = _by_name("state", state, self.state)
        for leaf, array in zip(self.state, found.values(), strict=True):
            _check_shape(leaf, array, (rows,))
        return {
            leaf.name: _cast(leaf, array)
            for leaf, array in zip(self.state, found.values(), strict=True)
        }

    def checked_reset(self, reset: Any, steps: int, rows: int) -> np.ndarray:
        """Returns `[steps, rows]` bools; None: no row starts anew.

        Raises:
          ValueError: it has another shape or type.
        """
        if reset is None:
            return np.zeros([steps, rows], bool)
        array = np.asarray(reset)
        if array.dtype != bool or array.shape != (steps, rows):
            raise ValueError(
                f"reset is {array.dtype.name}{list(array.shape)}, but must be bool[{steps}, "
                f"{rows}], as the inputs have {steps} steps of {rows} rows."
            )
        return array


# The axes before a row's shape in the description, by part of the interface.
AXES: dict[str, tuple[str, ...]] = {"inputs": ("T", "B"), "outputs": ("T", "B"), "state": ("B",)}


def leaf_names(nest: Nest, prefix: str) -> list[str]:
    """Returns a name for every leaf of a nest, in the order of `tf.nest.flatten`.

    Example:
      >>> leaf_names(({"h": 0, "Age of": 1}, 2), "state")
      ['state_0_age_of', 'state_0_h', 'state_1']
      >>> leaf_names(0, "inputs")
      ['inputs']
    """
    count = len(tf.nest.flatten(nest))
    numbered = tf.nest.pack_sequence_as(nest, list(range(count)))
    paths = {number: path for path, number in named_leaves(numbered).items()}
    names: list[str] = []
    for number in range(count):
        name = re.sub(r"[^a-z0-9]+", "_", f"{prefix} {paths[number]}".lower()).strip("_")
        twice = sum(re.fullmatch(rf"{name}(__\d+)?", other) is not None for other in names)
        names.append(f"{name}__{twice + 1}" if twice else name)
    return names


def named_arrays(nest: Nest, prefix: str) -> Arrays:
    """Returns the leaves of a nest as arrays, by the names of `leaf_names`."""
    leaves = [np.asarray(leaf) for leaf in tf.nest.flatten(nest)]
    return dict(zip(leaf_names(nest, prefix), leaves, strict=True))


def leaves_of(nest: Nest, prefix: str, axes: int) -> tuple[Leaf, ...]:
    """Returns the leaves of a nest of tensors, whose first `axes` axes are steps and rows.

    Raises:
      ExportError: a tensor has a shape that is not known.
    """
    found = []
    for name, tensor in zip(leaf_names(nest, prefix), tf.nest.flatten(nest), strict=True):
        shape = tf.TensorShape(tensor.shape)
        if shape.rank is None or shape.rank < axes or None in shape[axes:].as_list():
            raise ExportError(
                f"{name} has shape {shape}, but an export needs {axes} axes and known sizes after "
                "them. Return tensors of such shapes from the model."
            )
        dtype = tf.as_dtype(tensor.dtype).name
        found.append(Leaf(name, dtype, tuple(shape[axes:].as_list())))
    return tuple(found)


def _leaf(content: Mapping[str, Any], axes: int) -> Leaf:
    name, dtype, shape = content["name"], content["dtype"], content["shape"][axes:]
    fine = isinstance(name, str) and re.fullmatch(r"[a-z0-9_]+", name)
    if not fine or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"{name!r} has shape {shape!r}")
    tf.as_dtype(dtype)  # raises TypeError for a type that does not exist
    return Leaf(name, dtype, tuple(shape))


def _by_name(what: str, given: Mapping[str, Any], leaves: Sequence[Leaf]) -> Arrays:
    """Returns arrays in the order of `leaves`; raises ValueError unless the names are theirs."""
    names = [leaf.name for leaf in leaves]
    if set(given) != set(names):
        raise ValueError(
            f"The {what} are {sorted(map(str, given))}, but must be {sorted(names)}. Give all of "
            "them by name."
        )
    return {name: np.asarray(given[name]) for name in names}


def _check_shape(leaf: Leaf, array: np.ndarray, axes: Sequence[int | str]) -> None:
    """Raises ValueError unless an array has the given axes and then the shape of `leaf`.

    An axis that is a letter may have any size.
    """
    wanted = [*axes, *leaf.shape]
    fits = array.ndim == len(wanted) and all(
        isinstance(want, str) or size == want
        for size, want in zip(array.shape, wanted, strict=True)
    )
    if not fits:
        raise ValueError(
            f"{leaf.name} has shape {list(array.shape)}, but must be "
            f"[{', '.join(map(str, wanted))}]."
        )


def _check_values(leaf: Leaf, array: np.ndarray, size: int | None) -> None:
    """Raises ValueError for values that are no number or no id."""
    if tf.as_dtype(leaf.dtype).is_integer:
        if array.dtype.kind not in "iu":
            raise ValueError(f"{leaf.name} has type {array.dtype}, but must be ids, whole numbers.")
        least, most = 0, (2**31 if size is None else size) - 1
        fine = (array >= least) & (array <= most)
        rule = f"an id from {least} to {most}"
    elif array.dtype.kind not in "iuf":
        raise ValueError(f"{leaf.name} has type {array.dtype}, but must be numbers.")
    else:
        fine, rule = np.isfinite(array), "finite"
    if not fine.all():
        place = tuple(int(k) for k in np.argwhere(~fine)[0])
        raise ValueError(
            f"{leaf.name} has the value {array[place]} at step {place[0]} of row {place[1]}, but "
            f"must be {rule}."
        )


def _cast(leaf: Leaf, array: np.ndarray) -> np.ndarray:
    return array.astype(tf.as_dtype(leaf.dtype).as_numpy_dtype, copy=False)
