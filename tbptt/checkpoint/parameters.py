"""Parameters on disk."""

import os
import pathlib

import numpy as np
import tensorflow as tf


def save_parameters(path: str | os.PathLike[str], module: tf.Module) -> None:
    """Writes every parameter under its name to an `.npz`: beside first, then in its place."""
    path = pathlib.Path(path)
    beside = path.with_name(path.name + ".partial")
    values = {name: variable.numpy() for name, variable in named_parameters(module).items()}
    with open(beside, "wb") as file:
        np.savez(file, allow_pickle=False, **values)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def load_parameters(path: str | os.PathLike[str], module: tf.Module) -> None:
    """Gives `module` the parameters that `save_parameters` wrote, all of them or none.

    Raises:
      ValueError: names or shapes differ (every one that does).
    """
    with np.load(path, allow_pickle=False) as file:
        values = {name: file[name] for name in file.files}
    parameters = named_parameters(module)
    wrong = [
        f"{name}: {_shape(values.get(name))} in the file, {_shape(parameters.get(name))} in "
        "the model"
        for name in sorted({*values, *parameters})
        if _shape(values.get(name)) != _shape(parameters.get(name))
    ]
    if wrong:
        raise ValueError(f"{str(path)!r} is of another model. {'; '.join(wrong)}.")
    for name, variable in parameters.items():
        variable.assign(values[name])


def named_parameters(module: tf.Module) -> dict[str, tf.Variable]:
    """Parameters by their path in the module, as `core.cores.0.w_x`."""
    return {name: v for name, v in named_variables(module).items() if v.trainable}


def named_variables(module: tf.Module) -> dict[str, tf.Variable]:
    """Parameters and all other variables by their path in the module."""
    flattened = module._flatten(  # tf.Module's own walk; it offers paths under this name only
        predicate=lambda leaf: isinstance(leaf, tf.Variable), with_path=True
    )
    return {".".join(str(step) for step in path): variable for path, variable in flattened}


def _shape(value: np.ndarray | tf.Variable | None) -> str:
    return "nothing" if value is None else str(list(value.shape))
