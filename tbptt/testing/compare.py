"""Comparison of nests of numbers, with one table of tolerances and messages that name the law."""

from typing import Any

import numpy as np
import tensorflow as tf

from tbptt.state import named_leaves
from tbptt.types import Nest

LAWS = {
    0: "the contract of the part",
    1: "windows in a row are one long window",
    2: "no gradient crosses the beginning of a window",
    3: "after a reset nothing before it matters",
    4: "no row sees another",
    5: "every backend computes the same, compiled or not",
    6: "windows in one call or in several: the same bits",
    7: "saved and resumed: the same bits",
    8: "replicas follow one device",
    9: "evaluation changes nothing",
    10: "streaming is the forward pass",
    11: "a window begins where its rows stand, or starts them anew",
    12: "one trace a program",
}
"""The laws of docs/design.md in short, by number."""

# What two computations of the same thing may differ by. `atol` is in units of an array's largest
# element, if that is above 1: sums that cancel are as far off.
TOLERANCES = {
    "float32": dict(rtol=2e-5, atol=2e-6),
    "float64": dict(rtol=1e-11, atol=1e-12),
    "bfloat16": dict(rtol=2e-2, atol=2e-2),  # 8 bits: one rounding the other way is 0.4 %
}


class LawError(AssertionError):
    """A part breaks a law; the message names the law and shows where, and by how much."""


def require(condition: Any, law: int, message: str) -> None:
    """Raises LawError with the law's name and `message` unless `condition` is true."""
    if not condition:
        raise LawError(f"Law {law} ({LAWS[law]}): {message}")


def assert_close(
    actual: Nest, expected: Nest, precision: str | None = None, *, law: int = 0, what: str = ""
) -> None:
    """Checks that two nests agree in structure, shapes and types, and in values up to rounding.

    Args:
      actual, expected: nests of tensors, variables or arrays.
      precision: a name in `TOLERANCES`. None: the type of each array; integers must be equal.
      law: a number in `LAWS`, for the message.
      what: what is compared, for the message.

    Raises:
      LawError: they differ.
    """
    for name, a, b in _pairs(actual, expected, law, what):
        tolerance = TOLERANCES.get(precision or b.dtype.name, dict(rtol=0.0, atol=0.0))
        scale = max(1.0, np.max(np.abs(b), initial=0.0)) if tolerance["atol"] else 1.0
        fine = np.isclose(a, b, tolerance["rtol"], tolerance["atol"] * scale, equal_nan=True)
        if fine.all():
            continue
        place = _worst(a, b, fine)
        raise LawError(
            f"Law {law} ({LAWS[law]}): {name} differs at {list(map(int, place))}: {a[place]!s} "
            f"instead of {b[place]!s}, and at {np.sum(~fine) - 1} of {fine.size} more places. "
            f"Allowed: {tolerance['rtol']:g} of the value + {tolerance['atol'] * scale:.2g}."
        )


def assert_same_bits(actual: Nest, expected: Nest, *, law: int = 0, what: str = "") -> None:
    """Checks that two nests agree in structure, shapes and types, and hold the same bits.

    Args:
      actual, expected, law, what: see `assert_close`.

    Raises:
      LawError: they differ.
    """
    for name, a, b in _pairs(actual, expected, law, what):
        if a.tobytes() == b.tobytes():
            continue
        same = np.array([x.tobytes() == y.tobytes() for x, y in zip(a.flat, b.flat, strict=True)])
        place = _worst(a, b, same.reshape(a.shape))
        raise LawError(
            f"Law {law} ({LAWS[law]}): {name} differs at {list(map(int, place))}: {a[place]!r} "
            f"instead of {b[place]!r}, and at {np.sum(~same) - 1} of {same.size} more places. The "
            "bits must be the same."
        )


def _pairs(
    actual: Nest, expected: Nest, law: int, what: str
) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Returns name, actual and expected array of every leaf, of the same shape and type."""
    flat, wanted = tf.nest.flatten(actual), tf.nest.flatten(expected)
    what = what or "the result"
    require(
        len(flat) == len(wanted), law, f"{what} has {len(flat)} parts instead of {len(wanted)}."
    )
    found = []
    for path, one, other in zip(_paths(expected), flat, wanted, strict=True):
        name = f"{what}, {path}," if path else what
        require(
            (one is None) == (other is None),
            law,
            f"{name} is {'missing' if one is None else 'there'}, and should not be.",
        )
        if other is None:
            continue
        a, b = np.asarray(one), np.asarray(other)
        require(a.shape == b.shape, law, f"{name} has shape {a.shape} instead of {b.shape}.")
        require(a.dtype == b.dtype, law, f"{name} has type {a.dtype} instead of {b.dtype}.")
        found.append((name, a, b))
    return found


def _paths(nest: Nest) -> list[str]:
    """Returns the path of every leaf, in the order of `tf.nest.flatten`."""
    numbered = tf.nest.pack_sequence_as(nest, list(range(len(tf.nest.flatten(nest)))))
    return [path for path, _ in sorted(named_leaves(numbered).items(), key=lambda item: item[1])]


def _worst(a: np.ndarray, b: np.ndarray, fine: np.ndarray) -> tuple[Any, ...]:
    """Returns the index of the largest difference; one that is not finite comes first."""
    if a.dtype == bool:
        a, b = a.astype(np.int64), b.astype(np.int64)
    with np.errstate(invalid="ignore"):
        distance = np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64))
    distance = np.where(np.isnan(distance), np.inf, distance)
    return np.unravel_index(np.argmax(np.where(fine, -1.0, distance)), fine.shape)
