"""Reads the JSON of requests: fields, inputs and sampling settings, checked before use."""

import math
import secrets
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
import tensorflow as tf

from tbptt.serving.http.limits import Limits, Refusal
from tbptt.serving.sampling import Sampling
from tbptt.serving.text import encode_prompt
from tbptt.streams.corpus import Vocabulary
from tbptt.types import Nest

TYPES = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
}
LARGEST_SEED = (1 << 63) - 1
TEMPERATURES = (0.01, 100.0)
PENALTIES = (0.01, 100.0)


class Fields:
    """The fields of a JSON object, each of which must be known.

    Example:
      >>> fields = Fields(b'{"count": 3}', ("count", "seed"))
      >>> fields.take("count", int), fields.take("seed", int, 0)
      (3, 0)
    """

    def __init__(self, body: bytes, known: Sequence[str]) -> None:
        """Parses a body; an empty one has no fields.

        Raises:
          Refusal: it is not a JSON object, or has a field that is not `known`.
        """
        try:
            content = orjson.loads(body) if body else {}
        except orjson.JSONDecodeError as error:
            raise Refusal(400, f"The body is not JSON: {error}.") from None
        if not isinstance(content, dict):
            raise Refusal(400, f"The body must be a JSON object, but is {_kind(content)}.")
        for name in content:
            if name not in known:
                fields = (
                    f"the fields here are {', '.join(known)}" if known else "none is known here"
                )
                raise Refusal(400, f"There is no field {_short(name)}; {fields}.")
        self._content = content

    def __contains__(self, name: str) -> bool:
        return name in self._content

    def raw(self, name: str) -> Any:
        """Returns a field as it is, or None."""
        return self._content.get(name)

    def take(self, name: str, kind: type, default: Any = None) -> Any:
        """Returns a field of this type, or `default` if it is missing.

        Raises:
          Refusal: it is of another type; null is one.
        """
        if name not in self._content:
            return default
        value = self._content[name]
        if kind is float and type(value) is int:
            return float(value)
        if type(value) is not kind:
            raise Refusal(400, f"{name} must be {TYPES[kind]}, but is {_kind(value)}.")
        return value

    def between(self, name: str, low: int, high: int, default: int) -> int:
        """Returns a whole number from `low` to `high`.

        Raises:
          Refusal: it is none.
        """
        value = self.take(name, int, default)
        if not low <= value <= high:
            raise Refusal(400, f"{name} ({value}) must be from {low} to {high}.")
        return value


def inputs_of(
    fields: Fields, size: int | None, vocabulary: Vocabulary | None, limits: Limits
) -> Nest:
    """Returns the steps to feed, `[N, ...]`, from the field `inputs` or `text`.

    Args:
      fields: has one of the two.
      size: the number of symbols, if the inputs are ids.
      vocabulary: encodes texts, if the model has one.
      limits: for the number of steps.

    Raises:
      Refusal: they are not inputs of a model.
    """
    if ("inputs" in fields) == ("text" in fields):
        raise Refusal(400, "Give the steps to read as inputs or, to a model of language, as text.")
    if "text" in fields:
        inputs: Nest = _encoded(fields.take("text", str), vocabulary)
    else:
        inputs = _arrays(fields.raw("inputs"), size)
    lengths = {leaf.shape[0] if leaf.ndim else 0 for leaf in tf.nest.flatten(inputs)}
    if len(lengths) != 1 or 0 in lengths:
        raise Refusal(400, "inputs must be a list of 1 or more steps, of each part as many.")
    steps = lengths.pop()
    if steps > limits.steps:
        raise Refusal(
            413, f"These are {steps} steps, but a request may have {limits.steps}; send several."
        )
    return inputs


def _encoded(given: str, vocabulary: Vocabulary | None) -> np.ndarray:
    if vocabulary is None:
        raise Refusal(400, "This model has no vocabulary of text; give ids or features as inputs.")
    try:
        return np.asarray(encode_prompt(vocabulary, given), np.int32)
    except ValueError as error:
        raise Refusal(400, _sentence(error)) from None


def _arrays(given: Any, size: int | None) -> Nest:
    """Returns the arrays of the field `inputs`; an object holds several, by name."""
    if isinstance(given, dict) and given and size is None:
        return {name: _arrays(part, None) for name, part in sorted(given.items())}
    if not isinstance(given, list):
        raise Refusal(400, f"inputs must be a list of steps, but is {_kind(given)}.")
    if size is not None:
        return _ids(given, size)
    try:
        array = np.array(given)
    except ValueError:
        raise Refusal(400, "inputs must be steps that all have the same shape.") from None
    if array.dtype.kind not in "iuf" and array.size:
        raise Refusal(400, "inputs must be numbers only, without text, null, true or false.")
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise Refusal(400, "inputs must be finite in float32, at most 3.4e38.")
    elif array.size and not -(1 << 31) <= int(array.min()) <= int(array.max()) < 1 << 31:
        raise Refusal(400, "inputs that are whole numbers must fit in 32 bits.")
    return array


def _ids(given: list, size: int) -> np.ndarray:
    """Returns ids `[N]` of a vocabulary of this size."""
    for place, value in enumerate(given):
        if type(value) is not int:
            raise Refusal(
                400,
                f"inputs must be ids, whole numbers from 0 to {size - 1}, but step {place} is "
                f"{_kind(value)}.",
            )
        if not 0 <= value < size:
            raise Refusal(
                400, f"inputs must be ids from 0 to {size - 1}, but step {place} is {value}."
            )
    return np.array(given, np.int32)


SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def sampling_of(fields: Fields) -> Sampling:
    """Returns the sampling settings among the fields.

    Raises:
      Refusal: one of them is not allowed.
    """
    settings = {
        name: fields.take(name, int if name == "top_k" else float)
        for name in SAMPLING
        if name in fields
    }
    for name, (low, high) in (("temperature", TEMPERATURES), ("repetition_penalty", PENALTIES)):
        if not low <= settings.get(name, 1.0) <= high:
            raise Refusal(400, f"{name} ({settings[name]}) must be from {low} to {high:g}.")
    if settings.get("top_k", 0) >= 1 << 31:
        raise Refusal(400, f"top_k ({settings['top_k']}) must be below 2147483648.")
    try:
        return Sampling(**settings)
    except ValueError as error:
        raise Refusal(400, _sentence(error)) from None


def seed_of(fields: Fields) -> int:
    """Returns the seed, a number of 63 bits; a random one if there is none."""
    if "seed" not in fields:
        return secrets.randbits(31)
    return fields.between("seed", 0, LARGEST_SEED, 0)


def stop_of(fields: Fields, size: int, vocabulary: Vocabulary | None) -> frozenset[int]:
    """Returns the tokens after which nothing more is drawn, given as ids or texts.

    Raises:
      Refusal: one of them is no token.
    """
    given = fields.take("stop", list, [])
    if len(given) > 100:
        raise Refusal(400, f"stop has {len(given)} tokens, but may have 100.")
    tokens = set()
    for one in given:
        if isinstance(one, str) and one and vocabulary is not None:
            ids = _encoded(one, vocabulary)
            if len(ids) != 1:
                raise Refusal(
                    400, f"stop has {_short(one)}, which is {len(ids)} tokens, but must be one."
                )
            tokens.add(int(ids[0]))
        elif type(one) is int and 0 <= one < size:
            tokens.add(one)
        else:
            raise Refusal(
                400,
                f"stop must be a list of ids from 0 to {size - 1}, or of texts of one token, but "
                f"has {_short(one)}.",
            )
    return frozenset(tokens)


def _sentence(error: Exception) -> str:
    """Returns the message of an error in one line."""
    return " ".join(str(error).split())


def _short(value: Any) -> str:
    written = ascii(value)
    return written if len(written) <= 60 else f"{written[:57]}..."


def _kind(value: Any) -> str:
    """Returns how a JSON value is called."""
    if value is None:
        return "null"
    if isinstance(value, float) and not math.isfinite(value):
        return "not finite"
    if isinstance(value, dict):
        return "an object"
    return TYPES.get(type(value), "something else")
