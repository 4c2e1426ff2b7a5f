"""`Streamer`: carries the recurrent state of many named sessions while a model predicts."""

import dataclasses
import pathlib
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tbptt import checks
from tbptt.checkpoint.store import Checkpoint, CheckpointError, read_checkpoint, write_checkpoint
from tbptt.serving.chunks import ChunkJoiner, Steps
from tbptt.state import named_leaves
from tbptt.types import Model, Nest, State

LONGEST_NAME = 200  # characters of a session's name


class SessionError(ValueError):
    """A session that is not there, that is there already, or for which there is no place."""


@dataclasses.dataclass(frozen=True)
class SessionInfo:
    """What is known of a session without running it.

    Attributes:
      name: of the session.
      steps: how many steps it has read since it was opened or reset.
      age_seconds, idle_seconds: since it was opened, and since it was last used.
      bytes: of its state.
      where: `row` of the streamer, `memory`, or the path of a file that it was evicted to.
    """

    name: str
    steps: int
    age_seconds: float
    idle_seconds: float
    bytes: int
    where: str


@dataclasses.dataclass
class _Session:
    opened: float
    used: float
    steps: int = 0
    row: int | None = None
    evicted: list[np.ndarray] | pathlib.Path | None = None
    marks: dict[str, tuple[int, list[np.ndarray]]] = dataclasses.field(default_factory=dict)


class Streamer:
    """Runs a model on many streams that go on: each session has a recurrent state of its own.

    The state of a session is a row of NumPy arrays. `feed` gathers the rows, runs the compiled
    model, and puts the rows back, so that a session never sees another one, and a copy of a row is
    a copy of a session. A chunk of steps is cut into the compiled `chunk_sizes`, largest first, so
    no step is padded; sessions that have a piece of the same size run together, in the smallest of
    the compiled `batch_sizes` that holds them. After `warm_up` nothing is traced again.

    The outputs are those of the model's forward pass over the whole stream, up to rounding; the
    same chunks in the same batches give the same bits. Forking, marks, eviction and restoring
    change no bit. All methods may be called from several threads.

    Example:
      >>> model = LanguageModel(5, 3, LSTM(3, 4, seed=make_seed(0)), seed=make_seed(1))
      >>> streamer = Streamer(model, jit_compile=False)
      >>> streamer.open("ann")
      >>> streamer.feed("ann", [0, 1, 2]).shape  # logits of the token after each step
      (3, 5)
      >>> streamer.fork("ann", "bob")
      >>> np.array_equal(streamer.feed("ann", [3]), streamer.feed("bob", [3]))
      True
    """

    def __init__(
        self,
        model: Model,
        *,
        capacity: int = 1024,
        chunk_sizes: Sequence[int] = (64, 8, 1),
        batch_sizes: Sequence[int] = (1, 8, 64),
        jit_compile: bool = True,
    ) -> None:
        """Creates a streamer without sessions.

        Args:
          model: a `Model`; its parameters are read at every call.
          capacity: how many sessions have a row at the same time.
          chunk_sizes: numbers of steps that are compiled; 1 is among them.
          batch_sizes: numbers of rows that are compiled; more sessions run in several batches.
          jit_compile: whether XLA compiles the model.

        Raises:
          ValueError: sizes are not whole numbers of 1 or more, or 1 is not a chunk size.
        """
        checks.check_at_least("capacity", capacity, 1)
        for name, sizes in (("chunk_sizes", chunk_sizes), ("batch_sizes", batch_sizes)):
            if not sizes or not all(isinstance(size, int) and size >= 1 for size in sizes):
                raise ValueError(f"{name} ({list(sizes)}) must be whole numbers of 1 or more.")
        if 1 not in chunk_sizes:
            raise ValueError(
                f"chunk_sizes ({list(chunk_sizes)}) must have 1 among them, so that a chunk of any "
                "length can be made of them."
            )
        self._model = model
        self._chunk_sizes = sorted(set(chunk_sizes), reverse=True)
        self._batch_sizes = sorted(set(batch_sizes))
        one = model.initial_state(1)
        self._structure, self._outputs = one, None  # outputs: their structure, if they are nested
        self._names = list(named_leaves(one))
        rows = [np.asarray(leaf) for leaf in tf.nest.flatten(one)]
        self._initial = [leaf[0] for leaf in rows]
        self._rows = [np.repeat(leaf, capacity, axis=0) for leaf in rows]
        self._capacity, self._free = capacity, list(range(capacity))[::-1]
        self._sessions: dict[str, _Session] = {}
        self._lock = threading.RLock()
        self._join = ChunkJoiner(getattr(model, "vocabulary_size", None))
        self._run = tf.function(self._model_step, autograph=False, jit_compile=jit_compile)

    def _model_step(self, inputs: Nest, state: State) -> tuple[Nest, State]:
        return self._model(inputs, state)

    @property
    def capacity(self) -> int:
        """The number of sessions that can have a row at the same time."""
        return self._capacity

    @property
    def traces(self) -> int:
        """The number of programs that were traced: one for each pair of sizes that was used."""
        return int(self._run.experimental_get_tracing_count())

    def warm_up(self, example: Nest) -> None:
        """Compiles all pairs of chunk and batch sizes, so that no later call waits for it.

        Args:
          example: inputs of one step or more, `[N, ...]`, as for `feed`.
        """
        steps = self._join({"example": example})
        for size in self._chunk_sizes:
            for batch in self._batch_sizes:
                inputs = _map(
                    lambda x, n=size, b=batch: tf.constant(np.resize(x, [n, b, *x.shape[1:]])),
                    steps.inputs,
                )
                leaves = [np.repeat(leaf[None], batch, axis=0) for leaf in self._initial]
                self._forward(inputs, [tf.constant(leaf) for leaf in leaves])

    def open(self, session: str) -> None:
        """Opens a session that has read nothing.

        Raises:
          SessionError: there is such a session already, or no place for one more.
        """
        if not isinstance(session, str) or not 1 <= len(session) <= LONGEST_NAME:
            raise SessionError(
                f"The name of a session ({session!r}) must be a string of 1 to {LONGEST_NAME} "
                "characters."
            )
        with self._lock:
            if session in self._sessions:
                raise SessionError(f"There is a session {session!r} already. Reset or close it.")
            now = time.monotonic()
            self._put(_Session(now, now), session, self._initial)

    def feed(self, session: str, inputs: Nest) -> Nest:
        """Reads the next steps of a session and returns the model's outputs of each.

        Args:
          session: its name.
          inputs: `[N, ...]` with N >= 1: ids `[N]`, or features `[N, D]`.

        Returns:
          The outputs, NumPy arrays `[N, ...]`.

        Raises:
          SessionError: there is no such session.
          ValueError: the inputs cannot be used; the state is then as it was.
        """
        return self.feed_many({session: inputs})[session]

    def feed_many(self, inputs: Mapping[str, Nest]) -> dict[str, Nest]:
        """Reads the next steps of several sessions, whose chunks may differ in length.

        Args:
          inputs: by session, see `feed`.

        Returns:
          The outputs by session. If anything raises, no session has changed.
        """
        if not inputs:
            return {}
        with self._lock:
            found = [self._find(name) for name in inputs]
            self._check_room(sum(session.row is None for session in found))
            steps = self._join(inputs)
            states = self._gather(found)
            outputs = self._run_all(steps, states)
            self._join.remember(steps)
            now = time.monotonic()
            for session, name in zip(found, inputs, strict=True):
                if session.row is None:
                    self._put(session, name, self._initial)
                session.used = now
            rows = np.array([session.row for session in found])
            for all_rows, leaf in zip(self._rows, states, strict=True):
                all_rows[rows] = leaf
            for session, count in zip(found, steps.lengths.tolist(), strict=True):
                session.steps += count
            parts = zip(steps.begins.tolist(), (steps.begins + steps.lengths).tolist(), strict=True)
            if isinstance(outputs, np.ndarray):
                return {n: outputs[i:j] for n, (i, j) in zip(inputs, parts, strict=True)}
            return {
                name: _map(lambda x, i=i, j=j: x[i:j], outputs)
                for name, (i, j) in zip(inputs, parts, strict=True)
            }

    def _run_all(self, steps: Steps, states: list[np.ndarray]) -> Nest:
        """Runs all steps and replaces the states; returns outputs, one session behind the other."""
        outputs: Any = None
        read = np.zeros_like(steps.lengths)
        for size in self._chunk_sizes:
            while len(due := np.flatnonzero(steps.lengths - read >= size)):
                for first in range(0, len(due), self._batch_sizes[-1]):
                    some = due[first : first + self._batch_sizes[-1]]
                    at = (steps.begins + read)[some] + np.arange(size)[:, None]  # [T, B]
                    results = self._advance(some, at, steps, states)
                    if outputs is None:
                        outputs = [np.empty([len(steps), *x.shape[2:]], x.dtype) for x in results]
                    for out, leaf in zip(outputs, results, strict=True):
                        out[at] = leaf
                    read[some] += size
        return outputs[0] if self._outputs is None else _packed(self._outputs, outputs)

    def _advance(
        self, some: np.ndarray, at: np.ndarray, steps: Steps, states: list[np.ndarray]
    ) -> list[np.ndarray]:
        """Runs steps `at [T, B]` of sessions `some [B]`, and replaces their states.

        What fills the batch up to a compiled size are copies of its first session.
        """
        count = len(some)
        batch = next(size for size in self._batch_sizes if size >= count)
        filled = np.concatenate([np.arange(count), np.zeros(batch - count, np.int64)])
        inputs = _map(lambda x: tf.constant(x[at[:, filled]]), steps.inputs)
        results, after = self._forward(inputs, [tf.constant(leaf[some[filled]]) for leaf in states])
        for leaf, new in zip(states, after, strict=True):
            leaf[some] = new[:count]
        return [leaf[:, :count] for leaf in results]

    def _forward(
        self, inputs: Nest, leaves: list[tf.Tensor]
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Runs the compiled model on `[T, B, ...]`; returns leaves of outputs and of the state."""
        results, after = self._run(inputs, _packed(self._structure, leaves))
        if tf.nest.is_nested(results):
            self._outputs = results
        return (
            [leaf.numpy() for leaf in tf.nest.flatten(results)],
            [leaf.numpy() for leaf in tf.nest.flatten(after)],
        )

    def _gather(self, sessions: list[_Session]) -> list[np.ndarray]:
        """Returns copies of the states of sessions, leaves `[n, ...]`, wherever they are."""
        if all(session.row is not None for session in sessions):
            rows = np.array([session.row for session in sessions])
            return [leaf[rows] for leaf in self._rows]
        each = [self._state_of(session) for session in sessions]
        return [np.stack(leaves) for leaves in zip(*each, strict=True)]

    def reset(self, session: str) -> None:
        """Forgets everything that a session has read; its marks stay."""
        with self._lock:
            found = self._find(session)
            self._write(found, session, self._initial)
            found.steps, found.used = 0, time.monotonic()

    def fork(self, session: str, new: str) -> None:
        """Opens session `new` with the state of `session`, to the bit."""
        with self._lock:
            state, steps = self._state_of(self._find(session)), self._find(session).steps
            self.open(new)
            self._write(self._sessions[new], new, state)
            self._sessions[new].steps = steps

    def mark(self, session: str, name: str) -> None:
        """Remembers the state of a session under a name, to be rolled back to."""
        with self._lock:
            found = self._find(session)
            found.marks[name] = (found.steps, self._state_of(found))

    def rollback(self, session: str, name: str) -> None:
        """Puts a session back to where it was when `mark` was called, to the bit.

        Raises:
          SessionError: there is no such session, or no such mark.
        """
        with self._lock:
            found = self._find(session)
            if name not in found.marks:
                raise SessionError(
                    f"Session {session!r} has no mark {name!r}. It has {sorted(found.marks)}."
                )
            steps, state = found.marks[name]
            self._write(found, session, state)
            found.steps, found.used = steps, time.monotonic()

    def close(self, session: str) -> None:
        """Ends a session, and forgets its state and its marks."""
        with self._lock:
            found = self._find(session)
            if found.row is not None:
                self._free.append(found.row)
            _remove(found.evicted)
            del self._sessions[session]

    def state(self, session: str) -> State:
        """Returns a copy of the state of a session, leaves `[1, ...]`."""
        with self._lock:
            leaves = [leaf[None] for leaf in self._state_of(self._find(session))]
            return _packed(self._structure, leaves)

    def set_state(self, session: str, state: State) -> None:
        """Replaces the state of a session by `state`, leaves `[1, ...]`.

        Raises:
          SessionError: there is no such session.
          TypeError, ValueError: the state is not the model's.
        """
        advice = "Give it as `state` returns it, of the same model."
        tensors = _map(tf.convert_to_tensor, state)
        checks.check_like("state", tensors, self._structure, advice)
        with self._lock:
            found = self._find(session)
            self._write(found, session, [np.asarray(leaf)[0] for leaf in tf.nest.flatten(state)])

    def evict(self, session: str, folder: str | pathlib.Path | None = None) -> None:
        """Gives up the row of a session; the next use brings it back, to the bit.

        Args:
          session: its name.
          folder: keeps its state in a file there, of a name that says nothing of the session's.
            None: in memory.

        Raises:
          SessionError: there is no such session.
          OSError: the state cannot be written; the session then keeps its row.
        """
        with self._lock:
            found = self._find(session)
            if found.row is None:
                return
            state = self._state_of(found)
            found.evicted = state
            if folder is not None:
                path = pathlib.Path(folder, f"session-{session.encode().hex()[:64]}-{id(found):x}")
                arrays = dict(zip(self._names, state, strict=True))
                write_checkpoint(path, Checkpoint(found.steps, arrays, {"session": session}))
                found.evicted = path
            self._free.append(found.row)
            found.row = None

    def sessions(self) -> list[SessionInfo]:
        """Returns what is known of each session, the one that was used last at the end."""
        with self._lock:
            now = time.monotonic()
            size = sum(leaf.nbytes for leaf in self._initial)
            return [
                SessionInfo(
                    name, one.steps, now - one.opened, now - one.used, size, self._where(one)
                )
                for name, one in sorted(self._sessions.items(), key=lambda item: item[1].used)
            ]

    def _where(self, session: _Session) -> str:
        if session.row is not None:
            return "row"
        return str(session.evicted) if isinstance(session.evicted, pathlib.Path) else "memory"

    def _find(self, name: str) -> _Session:
        if name not in self._sessions:
            raise SessionError(
                f"There is no session {name!r}; {len(self._sessions)} are open. Open it first."
            )
        return self._sessions[name]

    def _state_of(self, session: _Session) -> list[np.ndarray]:
        """Returns a copy of the state of a session, wherever it is."""
        if session.row is not None:
            return [leaf[session.row].copy() for leaf in self._rows]
        if isinstance(session.evicted, pathlib.Path):
            try:
                arrays = read_checkpoint(session.evicted).arrays
                return [arrays[name] for name in self._names]
            except (CheckpointError, KeyError) as error:
                raise SessionError(f"The session's state cannot be read back: {error}") from None
        assert session.evicted is not None
        return [leaf.copy() for leaf in session.evicted]

    def _write(self, session: _Session, name: str, state: list[np.ndarray]) -> None:
        """Writes the state of a session to its row; takes a row if it has none."""
        if session.row is None:
            self._put(session, name, state)
            return
        for rows, leaf in zip(self._rows, state, strict=True):
            rows[session.row] = leaf

    def _put(self, session: _Session, name: str, state: list[np.ndarray]) -> None:
        """Gives a session a row with this state."""
        self._check_room(1)
        _remove(session.evicted)
        session.row, session.evicted = self._free.pop(), None
        self._sessions[name] = session
        self._write(session, name, state)

    def _check_room(self, needed: int) -> None:
        if needed > len(self._free):
            raise SessionError(
                f"{needed} more rows are needed, but {len(self._free)} of {self.capacity} are "
                "free. Close or evict sessions, or make a Streamer with a larger capacity."
            )


def _remove(evicted: list[np.ndarray] | pathlib.Path | None) -> None:
    """Removes the folder that a state was evicted to."""
    if isinstance(evicted, pathlib.Path):
        shutil.rmtree(evicted, ignore_errors=True)


def _packed(structure: Nest, leaves: list[Any]) -> Nest:
    return tf.nest.pack_sequence_as(structure, leaves)


def _map(function: Any, *nests: Nest) -> Nest:
    if len(nests) == 1 and not isinstance(nests[0], dict | tuple | list):
        return function(nests[0])  # faster than tf.nest
    return tf.nest.map_structure(function, *nests)
