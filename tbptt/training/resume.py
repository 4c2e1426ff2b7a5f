"""A run as a value: everything that decides how it goes on, taken from it and given back."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from tbptt.checkpoint import Checkpoint, CheckpointError, named_parameters, named_variables
from tbptt.state import named_leaves
from tbptt.training.loop import Position, Trainer
from tbptt.training.step import Carry
from tbptt.types import Cursor


class Part(Protocol):
    """What goes into a checkpoint beside trainer and position, as `KeepBest`."""

    def snapshot(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays and facts, by name; facts are what JSON holds."""

    def restore(self, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
        """Takes them back; raises ValueError where they do not fit."""


def snapshot(
    trainer: Trainer,
    position: Position,
    *,
    parts: Mapping[str, Part] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Everything a run is, copied to the host.

    Args:
      trainer: parameters, slots, averages, loss scale and step.
      position: state, position and cursor.
      parts: more, by name.
      facts: what the run must be for `restore` to take it: settings, the stream's fingerprint.

    Example: put down, and taken up by another trainer.
      >>> def build():
      ...     model = LanguageModel(5, 3, LSTM(3, 4, seed=make_seed(0)), seed=make_seed(1))
      ...     return Trainer(model, cross_entropy, sgd(0.1), jit_compile=False)
      >>> trainer = build()
      >>> _ = trainer.step.assign(7)
      >>> taken = snapshot(trainer, Position(trainer.initial_carry(2), Cursor(1, 3)))
      >>> other = build()
      >>> position = restore(taken, other, Position(other.initial_carry(2)))
      >>> int(other.step), position.cursor
      (7, Cursor(epoch=1, index=3))
    """
    arrays = {name: v.numpy() for name, v in variables_of(trainer).items()}
    carry = trainer.gather(position.carry)
    arrays |= {name: np.array(t) for name, t in _of_carry(carry).items()}
    more: dict[str, Any] = {
        "cursor": [position.cursor.epoch, position.cursor.index],
        **(facts or {}),
    }
    for part_name, part in (parts or {}).items():
        own, told = part.snapshot()
        arrays |= {f"{part_name}.{name}": value for name, value in own.items()}
        more[part_name] = {"arrays": sorted(own), "facts": told}
    return Checkpoint(trainer.windows_seen, arrays, more)


def restore(
    checkpoint: Checkpoint,
    trainer: Trainer,
    position: Position,
    *,
    parts: Mapping[str, Part] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Position:
    """Gives a run what `snapshot` took: all of it, or nothing changes.

    Args:
      checkpoint: what was taken.
      trainer, parts: of the same kind as then; their values are replaced.
      position: of a run that begins: it says what the state looks like.
      facts: as then.

    Returns:
      where the run stands.

    Raises:
      CheckpointError: names, shapes or types are of another model, or facts differ (all that do).
    """
    wrong = [
        f"{name}: {checkpoint.facts.get(name)!r} in the checkpoint, {value!r} here"
        for name, value in (facts or {}).items()
        if checkpoint.facts.get(name) != value
    ]
    missing = [name for name in (parts or {}) if name not in checkpoint.facts]
    wrong += [f"{name}: nothing in the checkpoint" for name in missing]
    of_parts = {
        f"{name}.{array}"
        for name in (parts or {})
        for array in checkpoint.facts.get(name, {}).get("arrays", ())
    }
    like = trainer.gather(position.carry)
    variables, carried = variables_of(trainer), _of_carry(like)
    there = {name: _kind(a) for name, a in checkpoint.arrays.items() if name not in of_parts}
    here = {name: _kind(value) for name, value in {**variables, **carried}.items()}
    wrong += [
        f"{name}: {there.get(name, 'nothing')} in the checkpoint, {here.get(name, 'nothing')} here"
        for name in sorted({*there, *here})
        if there.get(name) != here.get(name)
    ]
    if wrong:
        raise CheckpointError(
            f"The checkpoint of window {checkpoint.step} is of another run. {'; '.join(wrong)}."
        )
    _restore_parts(checkpoint, parts or {})
    for name, variable in variables.items():
        variable.assign(checkpoint.arrays[name])
    leaves = [tf.constant(checkpoint.arrays[name]) for name in carried]
    carry = tf.nest.pack_sequence_as(like, leaves)
    return Position(trainer.deal(carry), Cursor(*checkpoint.facts["cursor"]))


def _restore_parts(checkpoint: Checkpoint, parts: Mapping[str, Part]) -> None:
    """All of them, or none.

    Raises:
      CheckpointError: what one of them says to what it is given.
    """
    before = {name: part.snapshot() for name, part in parts.items()}
    try:
        for name, part in parts.items():
            stored = checkpoint.facts[name]
            own = {array: checkpoint.arrays[f"{name}.{array}"] for array in stored["arrays"]}
            part.restore(own, stored["facts"])
    except ValueError as error:
        for name, part in parts.items():
            part.restore(*before[name])
        raise CheckpointError(
            f"The checkpoint of window {checkpoint.step} is of another run. {name}: {error}"
        ) from None


def variables_of(trainer: Trainer) -> dict[str, tf.Variable]:
    """Every variable of a trainer by a name that says what it is.

    `model.` and the path in the model; `slots.` and the path in the optimizer's state, `average.`
    and the name of the parameter, `loss_scale.`; `step`.
    """
    found = {f"model.{name}": v for name, v in named_variables(trainer.model).items()}
    slots = named_leaves(trainer.slots)
    found |= {f"slots.{path.replace('/', '.')}": slot for path, slot in slots.items()}
    if trainer.average is not None:
        names = {id(v): name for name, v in named_parameters(trainer.model).items()}
        parameters: Sequence[tf.Variable] = trainer.model.trainable_variables
        for parameter, mean in zip(parameters, trainer.average.means, strict=True):
            found[f"average.{names[id(parameter)]}"] = mean
        found |= {"average.count": trainer.average.count, "average.begun": trainer.average.begun}
    if trainer.loss_scale is not None:
        of_scale = named_variables(trainer.loss_scale)
        found |= {f"loss_scale.{name}": v for name, v in of_scale.items()}
    return found | {"step": trainer.step}


def _of_carry(carry: Carry) -> dict[str, tf.Tensor]:
    """The leaves of a carry by name, in the order of its structure."""
    leaves = tf.nest.flatten(carry)
    places = named_leaves(tf.nest.pack_sequence_as(carry, list(range(len(leaves)))))
    ordered = sorted(places.items(), key=lambda item: int(item[1]))
    return {f"carry.{path.replace('/', '.')}": leaves[int(k)] for path, k in ordered}


def _kind(value: Any) -> str:
    """As `float32 [3, 4]`."""
    return f"{tf.as_dtype(value.dtype).name} {list(value.shape)}"
