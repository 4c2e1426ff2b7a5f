"""`Service`: a model, its sessions and the engine that runs them, as the handlers see them."""

import asyncio
import contextlib
import pathlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from tbptt.serving.http import keeping
from tbptt.serving.http.drawing import Drawing
from tbptt.serving.http.engine import Engine
from tbptt.serving.http.limits import DEFAULTS, Limits, RateLimit, Refusal
from tbptt.serving.http.metrics import Metrics
from tbptt.serving.http.sessions import Session, Sessions, leaves_of
from tbptt.serving.streamer import Streamer
from tbptt.state import named_leaves
from tbptt.types import Model, Nest

CHUNK_SIZES = (64, 8, 1)
LONGEST_NAP = 10.0  # seconds between two looks for sessions that have expired


class Service:
    """Everything that a server has but HTTP.

    Attributes:
      model, limits: as given.
      size: the number of symbols of a language model; None: another model.
      vocabulary: of a language model that reads and writes text.
      sessions, engine, metrics, rate: see their classes.
      stopping: whether no new requests are taken.
      hurry: whether generation ends as soon as it can.
      running: requests that run or wait.
      values: numbers in the outputs of a step; 0: not known yet.
      lost: why the sessions were not kept when the server ended. None: they were.
    """

    def __init__(
        self,
        model: Model,
        preprocessing: Mapping[str, Any] | None = None,
        *,
        limits: Limits = DEFAULTS,
        batch_rows: int = 32,
        sessions_folder: pathlib.Path | None = None,
        jit_compile: bool = True,
    ) -> None:
        """Creates a service; `start` starts it.

        Args:
          model: a `Model`.
          preprocessing: by name; `vocabulary` lets a language model read and write text.
          limits: what it takes.
          batch_rows: sessions that run together. All batches have this size, so that what a session
            computes is the same to the bit whatever the others do; more rows are faster for many
            sessions and slower for one.
          sessions_folder: keeps sessions while the server is stopped. None: they end.
          jit_compile: whether XLA compiles the model.
        """
        self.model, self.limits = model, limits
        self.size: int | None = getattr(model, "vocabulary_size", None)
        self.values = self.size or 0
        self.preprocessing = dict(preprocessing or {})
        vocabulary = self.preprocessing.get("vocabulary") if self.size else None
        if vocabulary is not None and len(vocabulary) != self.size:
            raise ValueError(
                f"The vocabulary has {len(vocabulary)} tokens, but the model {self.size}; they are "
                "not of one run."
            )
        self.vocabulary = vocabulary
        self.streamer = Streamer(
            model,
            capacity=limits.sessions,
            chunk_sizes=CHUNK_SIZES,
            batch_sizes=(batch_rows,),
            jit_compile=jit_compile,
        )
        self.sessions, self.metrics = Sessions(self.streamer, limits), Metrics()
        self.rate = RateLimit(limits.rate)
        self._drawing = Drawing(batch_rows, jit_compile=jit_compile) if self.size else None
        self.engine = Engine(self.streamer, batch_rows, self.metrics, self._drawing)
        self.stopping = self.hurry = False
        self.running = 0
        self.lost: str | None = None
        self._folder = sessions_folder
        self._sweeper: asyncio.Task | None = None

    def prepare(self) -> int:
        """Compiles what is known, and gives back sessions that were kept; returns their number.

        Raises:
          KeptError: the sessions that were kept cannot be given back.
        """
        if self.size is not None and self._drawing is not None:
            self.streamer.warm_up([0])
            self._drawing.warm_up(self.size)
        if self._folder is None:
            return 0
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise keeping.KeptError(
                f"The folder for sessions, {str(self._folder)!r}, cannot be made "
                f"({error.strerror}). Name another one."
            ) from None
        return keeping.restore(self._folder, self.sessions, self.model)

    def start(self) -> None:
        """Starts the engine, in the running event loop."""
        self.engine.start()
        self._sweeper = asyncio.get_running_loop().create_task(self._sweep())

    async def stop(self) -> None:
        """Ends the engine, and keeps the sessions in the folder, if there is one."""
        self.stopping = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        await self.engine.stop()
        if self._folder is not None:
            try:
                count = keeping.save(self._folder, self.sessions, self.model)
                logging.info("Kept %d sessions in %s.", count, self._folder)
            except OSError as error:
                self.lost = f"The sessions cannot be kept in {str(self._folder)!r}: {error}."
                logging.error(self.lost)

    async def _sweep(self) -> None:
        """Closes sessions that have expired, now and then."""
        while True:
            await asyncio.sleep(min(LONGEST_NAP, self.limits.idle_seconds / 4))
            self.metrics.expired += await self.engine.call(self.sessions.drop_expired)

    @contextlib.asynccontextmanager
    async def using(self, name: str) -> AsyncIterator[Session]:
        """Holds a session for a block, after those who came before.

        Raises:
          Refusal: there is no such session, it was closed meanwhile, or it is writing.
        """
        session = self.sessions.find(name)
        if session.writing:
            raise Refusal(
                409, f"Session {name!r} is writing; wait until it ends, or close that request."
            )
        async with session.lock:
            if session.closed:
                raise Refusal(404, f"Session {name!r} was closed meanwhile; open it again.")
            session.used = time.time()
            try:
                yield session
            finally:
                session.used = time.time()

    async def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Runs a function of `sessions` in the engine's thread."""
        return await self.engine.call(lambda: function(*arguments))

    async def feed(self, session: Session, inputs: Nest, want: str) -> Nest:
        """Reads steps in pieces, so that others have their turn, and returns outputs.

        Args:
          session: is held.
          inputs: `[N, ...]`.
          want: `all` outputs, those of the `last` step, or `none`.

        Raises:
          Refusal: the model cannot take them, or there would be too many outputs; the session is
            then as it was.
        """
        count = len(leaves_of(inputs)[0])
        if want == "all" and count * self.values > self.limits.values:
            raise Refusal(
                413,
                f"{count} steps have {count * self.values} outputs, but an answer may have "
                f"{self.limits.values}; send fewer steps, or ask for the last outputs.",
            )
        size = CHUNK_SIZES[0]
        if count <= size:
            return _wanted([await self._piece(session, inputs)], want)
        before = session.place, await self.call(self.sessions.state, session)
        outputs: list[Nest] = []
        try:
            for first in range(0, count, size):
                piece = tf.nest.map_structure(lambda x, k=first: x[k : k + size], inputs)
                result = await self._piece(session, piece)
                outputs = [*outputs, result] if want == "all" else [result]
        except BaseException:
            await self.call(self.sessions.restore, session, *before, session.marks)
            raise
        return _wanted(outputs, want)

    async def _piece(self, session: Session, inputs: Nest) -> Nest:
        try:
            outputs = await self.engine.feed(session, inputs)
        except (ValueError, TypeError, tf.errors.InvalidArgumentError) as error:
            message = str(error)
            if not message.startswith("The inputs of session"):  # but TensorFlow's own words
                kinds = ", ".join(
                    f"{x.dtype} of shape {['N', *x.shape[1:]]}".replace("'", "")
                    for x in tf.nest.flatten(inputs)
                )
                message = f"The model cannot take these inputs: {kinds}."
            raise Refusal(400, message) from None
        if not self.values:
            leaves = tf.nest.flatten(outputs)
            self.values = sum(int(np.prod(leaf.shape[1:])) for leaf in leaves)
        return outputs

    def about(self) -> dict[str, Any]:
        """Returns what a client is told of the model."""
        state = named_leaves(self.model.initial_state(1))
        vocabulary = self.vocabulary
        return {
            "kind": "language model" if self.size else "model",
            "class": type(self.model).__name__,
            "parameters": sum(int(np.prod(v.shape)) for v in getattr(self.model, "variables", ())),
            "vocabulary_size": self.size,
            "vocabulary": vocabulary
            and {"kind": vocabulary.kind, "sha256": getattr(vocabulary, "sha256", None)},
            "preprocessing": sorted(self.preprocessing),
            "state": {
                name: {"dtype": leaf.dtype.name, "shape": leaf.shape.as_list()[1:]}
                for name, leaf in state.items()
            },
            "limits": {
                name: getattr(self.limits, name)
                for name in ("body_bytes", "steps", "values", "sessions", "marks", "idle_seconds")
            },
        }

    def gauges(self) -> dict[str, tuple[str, float]]:
        """Returns help and value of what metrics show besides counters."""
        return {
            "tbptt_sessions": ("Sessions that are open.", len(self.sessions)),
            "tbptt_requests_running": ("Requests that run or wait.", self.running),
            "tbptt_traces": (
                "Programs that were traced; constant once warm.",
                self.streamer.traces,
            ),
            "tbptt_memory_bytes": ("Resident memory of the server.", _resident_bytes()),
        }


def _wanted(outputs: list[Nest], want: str) -> Nest:
    """Returns all outputs, those of the last step, or None."""
    if want == "none":
        return None
    if want == "last" and isinstance(outputs[-1], np.ndarray):
        return outputs[-1][-1:]
    if want == "last":
        return tf.nest.map_structure(lambda x: x[-1:], outputs[-1])
    if len(outputs) == 1:
        return outputs[0]
    return tf.nest.map_structure(lambda *parts: np.concatenate(parts), *outputs)


def _resident_bytes() -> int:
    """Returns the memory of this process, or 0 where the system does not tell."""
    try:
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * 4096
