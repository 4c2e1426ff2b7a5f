"""Keeps the sessions of a server in a folder while it is stopped, and gives them back to the bit.

    FOLDER/sessions-000003/manifest.json    names, steps, marks, checksums
                           arrays.npz       states, logits and tokens that were seen

A set of sessions belongs to one model: its digest is kept too, and another model is refused.
"""

import hashlib
import pathlib
import shutil
import time
from typing import Any

import numpy as np
import tensorflow as tf

from tbptt.checkpoint.store import Checkpoint, CheckpointError, read_checkpoint, write_checkpoint
from tbptt.serving.http.limits import Refusal
from tbptt.serving.http.sessions import Place, Session, Sessions, check_name, leaves_of
from tbptt.state import named_leaves
from tbptt.types import Model, State

VERSION = 1
PREFIX = "sessions-"


class KeptError(ValueError):
    """Raised when sessions that were kept cannot be given back; the message says what to do."""


def digest_of(model: Model) -> str:
    """Returns the SHA-256 of a model's parameters and of the form of its state."""
    digest = hashlib.sha256()
    for name, leaf in named_leaves(model.initial_state(1)).items():
        digest.update(f"{name} {leaf.dtype.name} {leaf.shape.as_list()}\n".encode())
    for variable in getattr(model, "variables", ()):
        array = variable.numpy()
        digest.update(f"{array.dtype.name} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    return digest.hexdigest()


def save(folder: pathlib.Path, sessions: Sessions, model: Model) -> int:
    """Writes all sessions to `folder`, replaces those kept before, and returns their number.

    Raises:
      OSError: they cannot be written; those kept before are still there.
    """
    kept = _kept(folder)
    places: list[tuple[Place, State]] = []
    told = []
    now = time.time()
    for session in sessions.all():
        marks = {}
        for name, (place, state) in session.marks.items():
            marks[name] = len(places)
            places.append((place, state))
        told.append(
            {
                "name": session.name,
                "age": now - session.opened,
                "idle": now - session.used,
                "place": len(places),
                "marks": marks,
            }
        )
        places.append((session.place, sessions.state(session)))
    facts = {
        "version": VERSION,
        "model": digest_of(model),
        "sessions": told,
        "places": [[place.steps, place.last] for place, _ in places],
    }
    number = 1 + max((int(path.name.removeprefix(PREFIX)) for path in kept), default=0)
    arrays = _arrays(places, model)
    write_checkpoint(folder / f"{PREFIX}{number:06d}", Checkpoint(number, arrays, facts))
    for path in kept:
        shutil.rmtree(path, ignore_errors=True)
    return len(told)


def _arrays(places: list[tuple[Place, State]], model: Model) -> dict[str, np.ndarray]:
    arrays = {}
    for k in range(len(leaves_of(model.initial_state(1))) if places else 0):
        arrays[f"state/{k}"] = np.concatenate([leaves_of(state)[k] for _, state in places])
    size = max((len(place.logits) for place, _ in places if place.logits is not None), default=0)
    for field, kind in (("logits", np.float32), ("seen", np.bool_)):
        array = np.zeros([len(places), size], kind)
        for row, (place, _) in enumerate(places):
            values = getattr(place, field)
            if values is not None:
                array[row] = values
        arrays[field] = array
    return arrays


def restore(folder: pathlib.Path, sessions: Sessions, model: Model) -> int:
    """Opens the sessions that were kept in `folder`, and returns their number.

    Raises:
      KeptError: they are damaged, or of another model or version.
    """
    kept = _kept(folder)
    if not kept:
        return 0
    path = kept[-1]
    try:
        checkpoint = read_checkpoint(path)
        _check(checkpoint, model)
        return _open_all(checkpoint, sessions, model)
    except (CheckpointError, KeptError, Refusal) as error:
        reason = str(error)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        reason = f"they are not what this server writes ({type(error).__name__})"
    raise KeptError(
        f"The sessions in {str(path)!r} cannot be given back: {reason.rstrip('.')}. Remove that "
        "folder to start without them, or name another one."
    )


def _kept(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the folders of sessions that were kept, the newest at the end."""
    paths = folder.glob(f"{PREFIX}*") if folder.is_dir() else []
    return sorted(p for p in paths if p.name.removeprefix(PREFIX).isdigit() and p.is_dir())


def _check(checkpoint: Checkpoint, model: Model) -> None:
    facts, arrays = checkpoint.facts, checkpoint.arrays
    if facts.get("version") != VERSION:
        raise KeptError(f"they are of version {facts.get('version')}, not {VERSION}")
    if facts.get("model") != digest_of(model):
        raise KeptError("they are of another model, or of other parameters")
    count, size = len(facts["places"]), int(getattr(model, "vocabulary_size", None) or 0)
    for k, leaf in enumerate(leaves_of(model.initial_state(1)) if count else []):
        array = arrays[f"state/{k}"]
        if array.shape != (count, *leaf.shape[1:]) or array.dtype != leaf.dtype:
            raise KeptError(f"leaf {k} of the state has type {array.dtype}, shape {array.shape}")
    for name, kind in (("logits", np.float32), ("seen", np.bool_)):
        array = arrays[name]
        if array.dtype != kind or array.shape not in ((count, size), (count, 0)):
            raise KeptError(f"{name} has type {array.dtype} and shape {array.shape}")


def _open_all(checkpoint: Checkpoint, sessions: Sessions, model: Model) -> int:
    """Opens the sessions of a checkpoint, whose arrays have been checked."""
    arrays, facts, now = checkpoint.arrays, checkpoint.facts, time.time()
    structure = model.initial_state(1)
    leaves = len(leaves_of(structure))
    count = len(facts["places"])

    def at(row: Any) -> tuple[Place, State]:
        if type(row) is not int or not 0 <= row < count:
            raise KeptError(f"they name the place {row} of {count}")
        parts = [arrays[f"state/{k}"][row : row + 1].copy() for k in range(leaves)]
        state = tf.nest.pack_sequence_as(structure, parts)
        steps, last = facts["places"][row]
        if type(steps) is not int or steps < 0:
            raise KeptError(f"a session has read {steps} steps")
        if last is None:
            return Place(steps), state
        if type(last) is not int or not 0 <= last < arrays["logits"].shape[1]:
            raise KeptError(f"the last token of a session is {last}")
        logits, seen = arrays["logits"][row].copy(), arrays["seen"][row].copy()
        return Place(steps, logits, seen, last), state

    opened: list[Session] = []
    for told in facts["sessions"]:
        place, state = at(told["place"])
        marks = {check_name("mark", name): at(row) for name, row in told["marks"].items()}
        session = sessions.open(check_name("session", told["name"]), now)
        session.opened, session.used = now - float(told["age"]), now - float(told["idle"])
        sessions.restore(session, place, state, marks)
        opened.append(session)
    return len(opened)
