"""`Sessions`: the named sessions of a server, each with what sampling needs, marks and an age.

All methods but `find` and `expired` run in the thread that runs the model; see `engine`.
"""

import asyncio
import dataclasses
import time
import urllib.parse
from typing import Any

import numpy as np
import tensorflow as tf

from tbptt.serving.http.limits import LONGEST_NAME, Limits, Refusal
from tbptt.serving.streamer import Streamer
from tbptt.types import Nest, State


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a session is in what it reads; a mark is one.

    Attributes:
      steps: that were read.
      logits: `[V]` after the last step; None: nothing was read, or no language model.
      seen: `[V]` bool: the tokens that were read, for the repetition penalty; None as above.
      last: the last token; None as above.
    """

    steps: int = 0
    logits: np.ndarray | None = None
    seen: np.ndarray | None = None
    last: int | None = None


@dataclasses.dataclass
class Session:
    """A session that is open.

    Attributes:
      name: of the session.
      opened, used: when, by `time.time`.
      place: where it is.
      marks: a place and a state, by name.
      lock: held by the request that uses it; others wait in the order in which they came.
      writing: whether it is drawing tokens.
      closed: whether it was closed while a request waited for it.
    """

    name: str
    opened: float
    used: float
    place: Place = Place()
    marks: dict[str, tuple[Place, State]] = dataclasses.field(default_factory=dict)
    lock: asyncio.Lock = dataclasses.field(default_factory=asyncio.Lock)
    writing: bool = False
    closed: bool = False

    def read(self, ids: np.ndarray, logits: np.ndarray) -> None:
        """Remembers that a language model has read `ids [N]`, and its last logits `[V]`."""
        seen = self.place.seen
        seen = np.zeros(len(logits), bool) if seen is None else seen.copy()
        seen[ids] = True
        self.place = Place(
            self.place.steps + len(ids), logits.astype(np.float32), seen, int(ids[-1])
        )

    def about(self) -> dict[str, Any]:
        """Returns what a client is told of it."""
        now = time.time()
        return {
            "name": self.name,
            "steps": self.place.steps,
            "marks": sorted(self.marks),
            "age_seconds": round(now - self.opened, 3),
            "idle_seconds": round(now - self.used, 3),
            "writing": self.writing,
        }


def check_name(thing: str, name: str) -> str:
    """Returns the name of a session or a mark, or refuses it.

    Raises:
      Refusal: it is empty or too long, or holds a slash or a character that cannot be printed.
    """
    rule = f"must be 1 to {LONGEST_NAME} printable characters without slashes, and not . or .."
    if not 1 <= len(name) <= LONGEST_NAME:
        raise Refusal(400, f"The name of a {thing} {rule}, but it has {len(name)} characters.")
    if not name.isprintable() or "/" in name or "\\" in name or name in (".", ".."):
        raise Refusal(400, f"The name of a {thing} {rule}, but it is {name!a}.")
    return name


def name_in_path(part: str) -> str:
    """Returns the session's name that a part of a path stands for, `%20` being a blank."""
    try:
        return check_name("session", urllib.parse.unquote(part, errors="strict"))
    except UnicodeDecodeError:
        raise Refusal(
            400, f"The name of a session must be UTF-8, but in the path it is {part!a}."
        ) from None


class Sessions:
    """Opens, copies and closes sessions of a streamer."""

    def __init__(self, streamer: Streamer, limits: Limits) -> None:
        """Creates it without sessions; the streamer must have none either."""
        self._streamer, self._limits = streamer, limits
        self._open: dict[str, Session] = {}

    def __len__(self) -> int:
        return len(self._open)

    def all(self) -> list[Session]:
        """Returns all sessions that have not expired, the one that was used last at the end."""
        there = [session for session in list(self._open.values()) if not self.expired(session)]
        return sorted(there, key=lambda session: session.used)

    def find(self, name: str) -> Session:
        """Returns a session that is open.

        Raises:
          Refusal: there is no such session, or it has expired.
        """
        session = self._open.get(name)
        if session is None or self.expired(session):
            raise Refusal(
                404,
                f"There is no session {name!r}: it was never opened, was closed, or has expired "
                f"after {self._limits.idle_seconds:g} seconds without use.",
            )
        return session

    def expired(self, session: Session) -> bool:
        """Returns whether nobody has used a session for too long."""
        idle = time.time() - session.used
        return idle > self._limits.idle_seconds and not session.lock.locked()

    def open(self, name: str, now: float | None = None) -> Session:
        """Opens a session that has read nothing.

        Raises:
          Refusal: there is one of that name, or there are too many.
        """
        there = self._open.get(name)
        if len(self._open) >= self._limits.sessions or (there and self.expired(there)):
            self.drop_expired()
        if name in self._open:
            raise Refusal(409, f"There is a session {name!r} already; choose another name.")
        if len(self._open) >= self._limits.sessions:
            raise Refusal(
                429,
                f"There are {len(self._open)} sessions, and this server holds no more; close one "
                "or wait until one expires.",
                retry_after=str(max(1, int(self._seconds_to_expiry()))),
            )
        now = time.time() if now is None else now
        self._streamer.open(name)
        session = self._open[name] = Session(name, now, now)
        return session

    def _seconds_to_expiry(self) -> float:
        first = min(session.used for session in self._open.values())
        return first + self._limits.idle_seconds - time.time()

    def close(self, session: Session) -> None:
        """Closes a session and forgets it."""
        if not session.closed:
            session.closed = True
            del self._open[session.name]
            self._streamer.close(session.name)

    def reset(self, session: Session) -> None:
        """Forgets what a session has read; its marks stay."""
        self._streamer.reset(session.name)
        session.place = Place()

    def fork(self, session: Session, new: str) -> Session:
        """Opens a session `new` with the state and the marks of `session`, to the bit."""
        made = self.open(new)
        self._streamer.set_state(new, self._streamer.state(session.name))
        made.place, made.marks = session.place, dict(session.marks)
        return made

    def mark(self, session: Session, name: str) -> None:
        """Remembers where a session is.

        Raises:
          Refusal: it has too many marks.
        """
        if name not in session.marks and len(session.marks) >= self._limits.marks:
            raise Refusal(
                409,
                f"Session {session.name!r} has {len(session.marks)} marks, the most there may be; "
                "use one of their names again.",
            )
        session.marks[name] = (session.place, self._streamer.state(session.name))

    def rollback(self, session: Session, name: str) -> None:
        """Puts a session back to a mark, to the bit.

        Raises:
          Refusal: it has no such mark.
        """
        if name not in session.marks:
            raise Refusal(
                404,
                f"Session {session.name!r} has no mark {name!r}; it has {sorted(session.marks)}.",
            )
        place, state = session.marks[name]
        self._streamer.set_state(session.name, state)
        session.place = place

    def state(self, session: Session) -> State:
        """Returns a copy of a session's state, leaves `[1, ...]`."""
        return self._streamer.state(session.name)

    def restore(
        self, session: Session, place: Place, state: State, marks: dict[str, tuple[Place, State]]
    ) -> None:
        """Puts a session where another one was."""
        self._streamer.set_state(session.name, state)
        session.place, session.marks = place, marks

    def drop_expired(self) -> int:
        """Closes all sessions that have expired and returns their number."""
        over = [session for session in self._open.values() if self.expired(session)]
        for session in over:
            self.close(session)
        return len(over)


def leaves_of(state: Nest) -> list[np.ndarray]:
    """Returns the leaves of a state as arrays."""
    return [np.asarray(leaf) for leaf in tf.nest.flatten(state)]
