"""Saves and loads parameters by name, as `.npz` or `.safetensors` files.

A name is the path of attributes in the module: `embedding.table`, `core.cores.0.w_x` (the lowest
layer of a `Stack`), `readout.w`. Shapes and gate order are those that each layer's docstring gives.
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
    """Writes every parameter of a module to a file, by name; see `write_parameters`."""
    parameters = named_parameters(module)
    write_parameters(path, {name: variable.numpy() for name, variable in parameters.items()})


def write_parameters(path: str | os.PathLike[str], values: Mapping[str, np.ndarray]) -> None:
    """Writes arrays by name to a file: all of them, or the file stays as it was.

    Args:
      path: an `.npz`, or a `.safetensors` (`pip install 'tbptt[safetensors]'`).
      values: the arrays by name.

    Raises:
      ValueError: the suffix is another one, or safetensors is not installed.
      OSError: the file cannot be written. An existing file is unchanged and no partial file is
        left.
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
    """Loads the parameters that `save_parameters` wrote into `module`, all of them or none.

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
    except Exception as error:  # each reader raises errors of its own
        raise ValueError(f"{str(path)!r} cannot be read: {error}.") from None
    assign_parameters(module, values, source=repr(str(path)))


def assign_parameters(
    module: tf.Module, values: Mapping[str, np.ndarray], *, source: str = "This"
) -> None:
    """Assigns `module` a value for each parameter, by name; all of them or none.

    Args:
      module: its parameters are assigned.
      values: one array for every parameter. float64 is cast to float32, but a float never to an
        integer.
      source: the origin of the values, as the subject of the error message.

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
    """Returns None for `.npz`, the module `safetensors.numpy` for `.safetensors`; else raises."""
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
