"""Describes a trainer as plain values, by which a checkpoint refuses a run with another trainer.

A description holds what is computed: hyperparameters of every transform and schedule, dropout
rates, the structure of the model, seed, reduction, loss. It leaves out how it is computed:
compilation, backend, gradient checkpointing (recomputation), the number of replicas.
"""

from collections.abc import Mapping
from types import FunctionType
from typing import Any

import numpy as np
import tensorflow as tf

# Attributes that change no parameter beyond rounding.
HOW = {"backend", "keep", "chunk", "metrics"}
OF_MODULE = set(vars(tf.Module()))  # and names that begin with _self_, which TensorFlow adds


def describe(value: Any) -> Any:
    """Describes a hyperparameter, a function, a transform or a module by values that JSON can hold.

    An object with an attribute `description` is described by that. A module of this package is
    described by its class, its plain attributes and its submodules; another module by its class
    and its submodules; a function by its name. Anything else is described by None, as unknown.

    Example:
      >>> core = Stack([GRU(2, 3, seed=make_seed(0), weight_dropout=0.1)], dropout_rate=0.4)
      >>> found = describe(core)
      >>> found["class"], found["dropout_rate"], found["cores"][0]["weight_dropout"]
      ('Stack', 0.4, 0.1)
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, tf.DType):
        return value.name
    if hasattr(value, "description"):
        return describe(value.description)
    if isinstance(value, Mapping):
        return {str(name): describe(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [describe(each) for each in value]
    if isinstance(value, tf.Module):
        return _of_module(value)
    return getattr(value, "__qualname__", None)


def _of_module(module: tf.Module) -> dict[str, Any]:
    ours = type(module).__module__.startswith("tbptt.")
    found: dict[str, Any] = {"class": type(module).__qualname__}
    for attribute, value in vars(module).items():
        name = attribute.lstrip("_")
        if attribute in OF_MODULE or attribute.startswith("_self_") or name in HOW:
            continue
        if not (ours or _holds_module(value)):
            continue
        described = describe(value)
        if value is None or (described is not None and not _is_unknown(value)):
            found[name] = described
    return found


def _is_unknown(value: Any) -> bool:
    """Returns whether an attribute is a nameless function or a parameter: neither is described."""
    if isinstance(value, list | tuple):
        return bool(value) and all(map(_is_unknown, value))
    if isinstance(value, FunctionType):
        return value.__name__ == "<lambda>"
    return isinstance(value, tf.Variable | tf.Tensor)


def _holds_module(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return bool(value) and all(isinstance(each, tf.Module) for each in value)
    return isinstance(value, tf.Module)


def differences(there: Any, here: Any) -> dict[str, tuple[Any, Any]]:
    """Compares two descriptions: returns the two values, as text, of every path that differs.

    Example:
      >>> differences({"optimizer": [{"name": "sgd", "rate": 0.1}]},
      ...             {"optimizer": [{"name": "sgd", "rate": 0.2}]})
      {'optimizer.0.sgd.rate': ('0.1', '0.2')}
    """
    old, new = _leaves("", there), _leaves("", here)
    return {
        path: (old.get(path, "nothing"), new.get(path, "nothing"))
        for path in {**old, **new}
        if old.get(path) != new.get(path)
    }


def _leaves(path: str, value: Any) -> dict[str, str]:
    if not isinstance(value, dict | list):
        return {path: repr(value)}
    found: dict[str, str] = {}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for name, each in items:
        label = f"{name}.{each['name']}" if isinstance(each, dict) and "name" in each else name
        found |= _leaves(f"{path}.{label}" if path else str(label), each)
    return found
