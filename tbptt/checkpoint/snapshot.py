"""Saves and resumes training runs: `snapshot` makes a checkpoint, `resume` and `restore` read it.

A loop of one's own calls `run_state = resume(checkpoints, trainer, run_state)` once, and
`checkpoints.save(snapshot(trainer, run_state))` whenever it likes. The state of all rows, the
cursor, parameters, optimizer state, averages and step are restored to the bit.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from tbptt.checkpoint.store import Checkpoint, CheckpointError, Checkpoints
from tbptt.state import named_leaves
from tbptt.training.description import differences
from tbptt.training.loop import RunState
from tbptt.training.trainer import Trainer
from tbptt.training.window import LoopState
from tbptt.types import Cursor
from tbptt.variables import named_parameters, named_variables


class Part(Protocol):
    """An object with values of its own that belong in a checkpoint, as `KeepBest`; for `parts=`."""

    def snapshot(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Returns arrays and facts by name; facts are what JSON can hold."""

    def restore(self, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
        """Restores the values that `snapshot` returned; raises ValueError if they do not fit."""


def snapshot(
    trainer: Trainer,
    run_state: RunState,
    *,
    parts: Mapping[str, Part] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Copies all that a run needs to resume into a `Checkpoint`; `Checkpoints.save` writes it.

    Args:
      trainer: gives parameters, optimizer state, averages, loss scale and step.
      run_state: gives the recurrent state of all rows and the cursor.
      parts: more objects to save, by name.
      facts: values that must be the same when the run is restored, as the stream's fingerprint.
        The trainer's own description, `Trainer.description`, is always saved.

    Example: saved, and restored into another trainer.
      >>> def build():
      ...     model = LanguageModel(5, 3, LSTM(3, 4, seed=make_seed(0)), seed=make_seed(1))
      ...     return Trainer(model, sgd(0.1), jit_compile=False)
      >>> trainer = build()
      >>> _ = trainer.step.assign(7)
      >>> taken = snapshot(trainer, RunState(trainer.initial_loop_state(2), Cursor(1, 3)))
      >>> other = build()
      >>> run_state = restore(taken, other, RunState(other.initial_loop_state(2)))
      >>> int(other.step), run_state.cursor
      (7, Cursor(epoch=1, index=3))
    """
    for name in {*(parts or {}), *(facts or {})} & {"cursor", "trainer"}:
        raise ValueError(f"{name!r} is a name of a checkpoint's own. Use another one.")
    arrays = {name: v.numpy() for name, v in variables_of(trainer).items()}
    loop_state = trainer.gather(run_state.loop_state)
    arrays |= {name: np.array(t) for name, t in _loop_state_arrays(loop_state).items()}
    more: dict[str, Any] = {
        "cursor": [run_state.cursor.epoch, run_state.cursor.index],
        "trainer": trainer.description,
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
    run_state: RunState,
    *,
    parts: Mapping[str, Part] | None = None,
    facts: Mapping[str, Any] | None = None,
    changed: Sequence[str] = (),
) -> RunState:
    """Restores a checkpoint into a trainer and its parts: all of it, or nothing changes.

    Args:
      checkpoint: what `snapshot` returned.
      trainer, parts: built as for `snapshot`; their values are replaced.
      run_state: the state of a new run, which gives the structure of the state.
      facts: as for `snapshot`.
      changed: names of what is changed on purpose, as `seed`, `optimizer` or
        `optimizer.1.scale_by_adam.b1`: parts of the trainer's description, as the error names them.

    Returns:
      The state to train from.

    Raises:
      CheckpointError: names, shapes or types are of another model, the trainer would go on
        differently (another seed, loss, reduction, dropout rate, learning rate, ...), or facts
        differ; the message names all differences. A checkpoint that an earlier version wrote does
        not describe the trainer.
    """
    wrong = [
        f"{name}: {checkpoint.facts.get(name)!r} in the checkpoint, {value!r} here"
        for name, value in (facts or {}).items()
        if checkpoint.facts.get(name) != value
    ]
    described = checkpoint.facts.get("trainer", trainer.description)
    wrong += [
        f"{path}: {there} in the checkpoint, {here} here"
        for path, (there, here) in differences(described, trainer.description).items()
        if not any(f"{path}.".startswith(f"{name}.") for name in changed)
    ]
    stored = {name: _stored_part(checkpoint, name) for name in (parts or {})}
    wrong += [f"{name}: nothing in the checkpoint" for name, part in stored.items() if not part]
    of_parts = {
        f"{name}.{array}" for name, part in stored.items() if part for array in part["arrays"]
    }
    cursor = cursor_of(checkpoint)
    like = trainer.gather(run_state.loop_state)
    variables, carried = variables_of(trainer), _loop_state_arrays(like)
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
    loop_state = tf.nest.pack_sequence_as(like, leaves)
    return RunState(trainer.scatter(loop_state), Cursor(*cursor))


def resume(
    checkpoints: Checkpoints,
    trainer: Trainer,
    run_state: RunState,
    *,
    parts: Mapping[str, Part] | None = None,
    facts: Mapping[str, Any] | None = None,
    changed: Sequence[str] = (),
) -> RunState:
    """Resumes a training run from its newest checkpoint, to the bit; without one, starts it anew.

    Args:
      checkpoints: the checkpoints in the run's folder.
      trainer, run_state, parts, facts, changed: see `restore`.

    Returns:
      The state to train from: `run_state` itself where there is no checkpoint yet.

    Raises:
      CheckpointError: there are checkpoints, but all are damaged, or the newest is of another run.

    Example:
      >>> model = LanguageModel(5, 3, LSTM(3, 4, seed=make_seed(0)), seed=make_seed(1))
      >>> trainer = Trainer(model, sgd(0.1), jit_compile=False)
      >>> import tempfile
      >>> checkpoints = Checkpoints(tempfile.mkdtemp())
      >>> run_state = resume(checkpoints, trainer, RunState(trainer.initial_loop_state(2)))
      >>> checkpoints.save(snapshot(trainer, run_state))
      >>> checkpoints.wait()
    """
    found = checkpoints.newest()
    if found is None:
        return run_state
    return restore(found, trainer, run_state, parts=parts, facts=facts, changed=changed)


def cursor_of(checkpoint: Checkpoint) -> tuple[int, int]:
    """Returns epoch and index of a checkpoint's cursor: the next window of the stream.

    Raises:
      CheckpointError: it has no valid cursor.
    """
    cursor: Any = checkpoint.facts.get("cursor")
    fine = isinstance(cursor, list) and len(cursor) == 2
    if not fine or not all(type(number) is int and number >= 0 for number in cursor):
        raise CheckpointError(
            f"The checkpoint of window {checkpoint.step} has {cursor!r} for a cursor, which must "
            "be two numbers, [epoch, index]. It is not of a run."
        )
    return cursor[0], cursor[1]


def _stored_part(checkpoint: Checkpoint, name: str) -> dict[str, Any] | None:
    """Returns the facts that a checkpoint holds of a part, or None if it lacks the part."""
    part = checkpoint.facts.get(name)
    if not isinstance(part, dict) or not isinstance(part.get("facts"), dict):
        return None
    arrays = part.get("arrays")
    if not isinstance(arrays, list):
        return None
    return part if all(f"{name}.{array}" in checkpoint.arrays for array in arrays) else None


def _restore_parts(checkpoint: Checkpoint, parts: Mapping[str, Part]) -> None:
    """Restores all parts from a checkpoint, or leaves all of them unchanged.

    Raises:
      CheckpointError: a part refuses its values.
    """
    before = {name: part.snapshot() for name, part in parts.items()}
    try:
        for name, part in parts.items():
            stored: Any = _stored_part(checkpoint, name)
            own = {array: checkpoint.arrays[f"{name}.{array}"] for array in stored["arrays"]}
            part.restore(own, stored["facts"])
    except (ValueError, KeyError, TypeError) as error:
        for name, part in parts.items():
            part.restore(*before[name])
        raise CheckpointError(
            f"The checkpoint of window {checkpoint.step} is of another run. {name}: {error}"
        ) from None


def variables_of(trainer: Trainer) -> dict[str, tf.Variable]:
    """Returns every variable of a trainer by its name in a checkpoint.

    Names are `model.` and the path in the model, `opt_state.` and the path in the optimizer's
    state, `average.` and the name of the parameter, `loss_scale.` and a name, and `step`.
    """
    found = {f"model.{name}": v for name, v in named_variables(trainer.model).items()}
    opt_state = named_leaves(trainer.opt_state)
    found |= {f"opt_state.{path.replace('/', '.')}": v for path, v in opt_state.items()}
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


def _loop_state_arrays(loop_state: LoopState) -> dict[str, tf.Tensor]:
    """Returns the leaves of a loop state by name, in the order of its structure."""
    leaves = tf.nest.flatten(loop_state)
    places = named_leaves(tf.nest.pack_sequence_as(loop_state, list(range(len(leaves)))))
    ordered = sorted(places.items(), key=lambda item: int(item[1]))
    return {f"loop_state.{path.replace('/', '.')}": leaves[int(k)] for path, k in ordered}


def _kind(value: Any) -> str:
    """Returns dtype and shape of a value as text, as `float32 [3, 4]`."""
    return f"{tf.as_dtype(value.dtype).name} {list(value.shape)}"
