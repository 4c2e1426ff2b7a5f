"""Imports the weights of a `torch.nn.LSTM` or `torch.nn.GRU` into the layers of this library."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tbptt.checkpoint.parameters import assign_parameters
from tbptt.variables import named_parameters

GATES = {4: "LSTM", 3: "GRU"}


def load_torch(core: tf.Module, weights: Mapping[str, Any], *, prefix: str = "") -> None:
    """Loads the weights of a PyTorch module into an `LSTM`, a `GRU` or a `Stack` of them.

    Both have gates in the order i f g o (GRU: reset, update, candidate), and matrices transposed:

        w_x = weight_ih^T,  w_h = weight_hh^T,  w_p = weight_hr^T
        LSTM: b = bias_ih + bias_hh
        GRU:  b = bias_ih + (bias_hh of reset and update, 0),  b_h = bias_hh of the candidate

    Args:
      core: has the same number of layers, of the same kind and sizes.
      weights: a `state_dict()`, of tensors on the CPU or of arrays.
      prefix: the prefix of the module's names, as `rnn.`; names without it are ignored.

    Raises:
      ValueError: there are no such weights, they belong to a bidirectional network or to other
        cells, or the core's parameters have other names or shapes. Then nothing has changed.

    Example:
      >>> core = LSTM(2, 1, seed=make_seed(0))
      >>> load_torch(core, {
      ...     "weight_ih_l0": np.ones([4, 2]), "bias_ih_l0": np.arange(4.0),
      ...     "weight_hh_l0": np.ones([4, 1]), "bias_hh_l0": np.ones(4),
      ... })
      >>> core.b.numpy().tolist()
      [1.0, 2.0, 3.0, 4.0]
    """
    values = from_torch(weights, prefix=prefix)
    if "w_x" in named_parameters(core):  # a layer by itself, not in a stack
        values = {name.removeprefix("cores.0."): value for name, value in values.items()}
    assign_parameters(core, values, source="The PyTorch module")


def from_torch(weights: Mapping[str, Any], *, prefix: str = "") -> dict[str, np.ndarray]:
    """Converts a PyTorch `state_dict()` to a `Stack`'s parameters by name; see `load_torch`."""
    given = {
        name.removeprefix(prefix): np.asarray(value)
        for name, value in weights.items()
        if name.startswith(prefix)
    }
    if "weight_ih_l0" not in given:
        raise ValueError(
            f"There is no {prefix}weight_ih_l0 among {sorted(weights)}. Give the state_dict() of a "
            "torch.nn.LSTM or torch.nn.GRU, or the prefix of its names in a larger one."
        )
    values: dict[str, np.ndarray] = {}
    layer = 0
    while f"weight_ih_l{layer}" in given:
        of_layer = {
            name.removesuffix(f"_l{layer}"): given.pop(name)
            for name in list(given)
            if name.endswith(f"_l{layer}")
        }
        values |= {f"cores.{layer}.{name}": v for name, v in _layer(of_layer).items()}
        layer += 1
    if given:
        raise ValueError(
            f"There is no place for {sorted(given)}. A network that reads both ways cannot be "
            "imported: it needs the end of its stream before the beginning."
        )
    return values


def _layer(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    w_x, w_h = given["weight_ih"].T, given["weight_hh"].T
    projection = {"w_p": given["weight_hr"].T} if "weight_hr" in given else {}
    hidden = projection["w_p"].shape[0] if projection else w_h.shape[0]
    cell = GATES.get(w_x.shape[1] // hidden)
    zeros = np.zeros(w_x.shape[1], w_x.dtype)  # bias=False
    b_x, b_h = given.get("bias_ih", zeros), given.get("bias_hh", zeros)
    if cell == "LSTM":
        return {"w_x": w_x, "w_h": w_h, "b": b_x + b_h, **projection}
    if cell == "GRU":
        outside = np.concatenate([b_h[: 2 * hidden], zeros[2 * hidden :]])
        return {"w_x": w_x, "w_h": w_h, "b": b_x + outside, "b_h": b_h[2 * hidden :]}
    raise ValueError(
        f"weight_ih of {w_x.shape[1]} rows for {hidden} units is of neither an LSTM, which has 4 "
        "rows a unit, nor a GRU, which has 3."
    )
