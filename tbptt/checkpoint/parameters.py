"""Parameters on disk, under names that say where in the model they are.

A name is the path in the module: `embedding.table`, `core.cores.0.w_x` (the lowest layer of a
`Stack`), `readout.w`. Shapes and gate order are those that each layer's docstring gives.
"""

import contextlib
import os
import pathlib
import types
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from tbptt.variables import named_parameters

SUFFIXES = (".npz", ".safetensors")


def save_parameters(path: str | os.PathLike[str], module: tf.Module) -> None:
    """Writes every parameter of a module under its name, as `write_parameters` does."""
    parameters = named_parameters(module)
    write_parameters(path, {name: variable.numpy() for name, variable in parameters.items()})


def write_parameters(path: str | os.PathLike[str], values: Mapping[str, np.ndarray]) -> None:
    """Writes arrays by name: beside first, then in their place.

    Args:
      path: an `.npz`, or a `.safetensors` (`pip install 'tbptt[safetensors]'`).
      values: by name.

    Raises:
      ValueError: another suffix, or safetensors is not installed.
      OSError: it cannot be written; what was there is still there, and nothing beside it.
    """
    path = pathlib.Path(path)
    safetensors = _check_suffix(path)
    beside = path.with_name(path.name + ".partial")
    try:
        with open(beside, "wb") as file:
            if safetensors is None:
                np.savez(file, allow_pickle=False, **values)
            else:
                file.write(safetensors.save(dict(values)))
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from None


def load_parameters(path: str | os.PathLike[str], module: tf.Module) -> None:
    """Gives `module` the parameters that `save_parameters` wrote, all of them or none.

    Raises:
      ValueError: names, shapes or kinds of number differ (every one that does), or the file is
        damaged or of another suffix.
    """
    path = pathlib.Path(path)
    safetensors = _check_suffix(path)
    try:
        if safetensors is None:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
                values = {name: arrays[name] for name in arrays.files}
        else:
            values = safetensors.load(path.read_bytes())
    except OSError:
        raise
    except Exception as error:  # each reader has its own
        raise ValueError(f"{str(path)!r} cannot be read: {error}.") from None
    assign_parameters(module, values, source=repr(str(path)))


def assign_parameters(
    module: tf.Module, values: Mapping[str, np.ndarray], *, source: str = "This"
) -> None:
    """Gives `module` all parameters by name, or none.

    Args:
      module: whose parameters.
      values: one for every parameter; float64 may become float32, but no number an integer.
      source: what they are from, for the message.

    Raises:
      ValueError: names, shapes or kinds of number differ (every one that does).
    """
    parameters = named_parameters(module)
    wrong = [
        f"{name}: {_shape(values.get(name))} in the file, {_shape(parameters.get(name))} in "
        "the model"
        for name in sorted({*values, *parameters})
        if not _fits(values.get(name), parameters.get(name))
    ]
    if wrong:
        raise ValueError(f"{source} is of another model. {'; '.join(wrong)}.")
    for name, variable in parameters.items():
        variable.assign(values[name].astype(variable.dtype.as_numpy_dtype))


def _check_suffix(path: pathlib.Path) -> types.ModuleType | None:
    """None for an `.npz`; for a `.safetensors`, what reads and writes it."""
    if path.suffix not in SUFFIXES:
        raise ValueError(
            f"Parameters are written to and read from {' and '.join(SUFFIXES)}, not {path.name!r}."
        )
    if path.suffix == ".npz":
        return None
    try:
        import safetensors.numpy
    except ImportError:
        raise ValueError(
            f"{path.name!r} needs pip install safetensors; an .npz needs nothing more."
        ) from None
    return safetensors.numpy


def _fits(value: np.ndarray | None, parameter: tf.Variable | None) -> bool:
    if value is None or parameter is None or value.shape != tuple(parameter.shape):
        return False
    return np.can_cast(value.dtype, parameter.dtype.as_numpy_dtype, "same_kind")


def _shape(value: np.ndarray | tf.Variable | None) -> str:
    return "nothing" if value is None else f"{tf.as_dtype(value.dtype).name} {list(value.shape)}"
