"""Describes models as JSON, by the arguments they were made with, and makes them again from it."""

import functools
import inspect
import weakref
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf

from tbptt import losses
from tbptt.seeds import make_seed

Class = TypeVar("Class", bound=type)

CLASSES: dict[str, type] = {}  # the classes that can be made again, by name
LOSSES = {
    function.__name__: function
    for function in (
        losses.absolute_error,
        losses.binary_cross_entropy,
        losses.cross_entropy,
        losses.gaussian_nll,
        losses.squared_error,
    )
}
DTYPES = {dtype.name: dtype for dtype in (tf.bfloat16, tf.float16, tf.float32, tf.float64)}
LEFT_OUT = ("initializer", "name", "seed")  # parameters are loaded, not drawn

_arguments: "weakref.WeakKeyDictionary[tf.Module, dict[str, Any]]" = weakref.WeakKeyDictionary()


def rebuildable(cls: Class) -> Class:
    """Decorates a module's class: remembers the arguments each of its objects is made with.

    They are kept outside of the object, because everything in a `tf.Module` would be searched for
    parameters.
    """
    init = cls.__init__  # type: ignore[misc]
    signature = inspect.signature(init)

    @functools.wraps(init)
    def remember(self: Any, *args: Any, **options: Any) -> None:
        init(self, *args, **options)
        if type(self) is cls:
            bound = signature.bind(self, *args, **options)
            bound.apply_defaults()
            _arguments[self] = dict(list(bound.arguments.items())[1:])

    cls.__init__ = remember  # type: ignore[misc]
    CLASSES[cls.__name__] = cls
    return cls


def describe(module: Any) -> dict[str, Any]:
    """Returns what `rebuild` makes a module from: JSON of its class and its arguments.

    What is not this library's, as a cell or a loss of one's own, is described by its name alone,
    `{"own": name}`.

    Example:
      >>> describe(Stack([GRU(2, 3, seed=make_seed(0))]))["cores"][0]["hidden_size"]
      3
    """
    if module not in _arguments:
        return {"own": type(module).__name__}
    described: dict[str, Any] = {"class": type(module).__name__}
    for name, value in _arguments[module].items():
        if name in LEFT_OUT:
            continue
        if inspect.isfunction(value) and isinstance(getattr(module, name, None), tf.Module):
            value = getattr(module, name)  # a readout, made by a function of the embedding's table
        described[name] = _described(value)
    return described


def _described(value: Any) -> Any:
    """Returns an argument as JSON."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_described(each) for each in value]
    if isinstance(value, Mapping):
        return {"items": {str(name): _described(each) for name, each in value.items()}}
    if isinstance(value, tf.DType):
        return {"dtype": value.name}
    if isinstance(value, tf.Variable):
        return {"shared": "table"}  # the embedding's table: the weights are tied
    if isinstance(value, tf.Module):
        return describe(value)
    name = getattr(value, "__name__", type(value).__name__)
    return {"loss": name} if LOSSES.get(name) is value else {"own": name}


def rebuild(description: Any) -> Any:
    """Makes a module from what `describe` returned, with initial parameters of its own.

    A loss or metric of one's own is replaced by a function that raises: predictions do not need it.
    A layer of the backend `cudnn` or `native`, which another machine may lack, gets `auto`.

    Raises:
      ValueError: a part is not this library's, or the description is damaged or of another version.

    Example:
      >>> rebuild({"class": "GRU", "input_size": 2, "hidden_size": 3}).output_size
      3
    """
    return _rebuilt(description if isinstance(description, dict) else {}, "model")


def _rebuilt(value: Any, path: str) -> Any:
    """Makes an argument from JSON; `path` says where it stands."""
    if isinstance(value, list):
        return tuple(_rebuilt(each, f"{path}.{k}") for k, each in enumerate(value))
    if not isinstance(value, dict):
        return value
    if set(value) == {"dtype"}:
        return _looked_up(DTYPES, value["dtype"], path)
    if set(value) == {"loss"}:
        return _looked_up(LOSSES, value["loss"], path)
    if set(value) == {"items"} and isinstance(value["items"], dict):
        return {name: _rebuilt(each, f"{path}.{name}") for name, each in value["items"].items()}
    if set(value) == {"own"}:
        if path.rpartition(".")[2] == "loss" or ".metrics." in path:
            return _raising(value["own"])
        raise ValueError(
            f"{path} is {value['own']!r}, which is not a part of tbptt, so it cannot be made again."
        )
    return _module(value, path)


def _module(description: dict[str, Any], path: str) -> Any:
    """Makes a module; one whose `table` is shared becomes a function of that table."""
    cls = _looked_up(CLASSES, description.get("class"), path)
    known = inspect.signature(cls).parameters
    for name in description:
        if name != "class" and (name not in known or name in LEFT_OUT):
            raise ValueError(f"{path}: {cls.__name__} has no argument {name!r}.")
    arguments = {
        name: _rebuilt(value, f"{path}.{name}")
        for name, value in description.items()
        if name != "class" and value != {"shared": "table"}
    }
    if arguments.get("backend") in ("cudnn", "native"):
        arguments["backend"] = "auto"
    if "seed" in known:
        arguments["seed"] = make_seed(0)
    if {"shared": "table"} in description.values():
        return lambda table: _called(cls, {**arguments, "table": table}, path)
    return _called(cls, arguments, path)


def _called(cls: type, arguments: dict[str, Any], path: str) -> Any:
    try:
        return cls(**arguments)
    except Exception as error:  # whatever a constructor meets in arguments that are not its own
        raise ValueError(f"{path}: {cls.__name__} cannot be made: {error}") from None


def _looked_up(table: Mapping[str, Any], name: Any, path: str) -> Any:
    if not isinstance(name, str) or name not in table:
        raise ValueError(f"{path}: there is no {name!r} in this version of tbptt.")
    return table[name]


def _raising(name: str) -> Any:
    def loss(outputs: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        raise ValueError(
            f"The loss {name!r} is not a part of tbptt, so it was not loaded. Give load(logdir, "
            "model=...) a model that has it."
        )

    loss.__name__ = name
    return loss
