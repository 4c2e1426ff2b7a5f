"""The handlers of routes: each takes a `Service` and a `Request` and returns an `Answer`."""

import asyncio
import dataclasses
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import numpy as np
import orjson
from absl import logging

from tbptt.serving.drawing import uniforms
from tbptt.serving.http.limits import Refusal
from tbptt.serving.http.page import PAGE, PAGE_HEADERS
from tbptt.serving.http.reading import (
    SAMPLING,
    Fields,
    inputs_of,
    sampling_of,
    seed_of,
    stop_of,
)
from tbptt.serving.http.service import Service
from tbptt.serving.http.sessions import Session, check_name
from tbptt.serving.sampling import Sampling
from tbptt.serving.text import TextDecoder
from tbptt.types import Nest

BURST = 4  # tokens that a session draws in one round, when it is not its first
MOST_BEGUN = 1_000_000  # numbers of a seed that may be left out
PROMPT = ("inputs", "text")
Send = Callable[[dict[str, Any]], Awaitable[None]]


@dataclasses.dataclass
class Request:
    """A request whose route, token and headers have been checked.

    Attributes:
      session: the name in the path, or "".
      body: of the request.
      receive, send: of ASGI.
    """

    session: str
    body: bytes
    receive: Callable[[], Awaitable[dict[str, Any]]]
    send: Send


@dataclasses.dataclass(frozen=True)
class Answer:
    """A status, a body and its headers; `sent` says that the handler has sent them already."""

    status: int
    body: bytes = b""
    headers: tuple[tuple[bytes, bytes], ...] = ((b"content-type", b"application/json"),)
    sent: bool = False


def as_json(content: Any, status: int = 200) -> Answer:
    """Returns an answer in JSON; arrays are written as lists, and what is not finite as null."""
    return Answer(status, orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY))


async def page(service: Service, request: Request) -> Answer:
    """Answers with the page."""
    return Answer(200, PAGE, PAGE_HEADERS)


async def health(service: Service, request: Request) -> Answer:
    """Answers that the server runs."""
    return as_json({"status": "ok"})


async def metrics(service: Service, request: Request) -> Answer:
    """Answers with metrics in Prometheus' text format."""
    text = service.metrics.text(service.gauges())
    return Answer(200, text.encode(), ((b"content-type", b"text/plain; version=0.0.4"),))


async def model(service: Service, request: Request) -> Answer:
    """Describes the model."""
    return as_json(service.about())


async def list_sessions(service: Service, request: Request) -> Answer:
    """Lists all sessions, the one that was used last at the end."""
    return as_json({"sessions": [session.about() for session in service.sessions.all()]})


async def open_session(service: Service, request: Request) -> Answer:
    """Opens a session of the given name, or of one that cannot be guessed."""
    name = _new_name(Fields(request.body, ("name",)))
    session = await service.call(service.sessions.open, name)
    return as_json(session.about(), 201)


def _new_name(fields: Fields) -> str:
    name = fields.take("name", str)
    return secrets.token_urlsafe(16) if name is None else check_name("session", name)


async def show_session(service: Service, request: Request) -> Answer:
    """Describes a session."""
    return as_json(service.sessions.find(request.session).about())


async def close_session(service: Service, request: Request) -> Answer:
    """Closes a session."""
    async with service.using(request.session) as session:
        await service.call(service.sessions.close, session)
    return as_json({"closed": session.name})


async def reset(service: Service, request: Request) -> Answer:
    """Lets a session forget what it has read."""
    Fields(request.body, ())
    async with service.using(request.session) as session:
        await service.call(service.sessions.reset, session)
        return as_json(session.about())


async def fork(service: Service, request: Request) -> Answer:
    """Opens a session with the state of another one."""
    name = _new_name(Fields(request.body, ("name",)))
    async with service.using(request.session) as session:
        made = await service.call(service.sessions.fork, session, name)
    return as_json(made.about(), 201)


async def mark(service: Service, request: Request) -> Answer:
    """Remembers where a session is."""
    return await _with_mark(service, request, service.sessions.mark)


async def rollback(service: Service, request: Request) -> Answer:
    """Puts a session back to a mark."""
    return await _with_mark(service, request, service.sessions.rollback)


async def _with_mark(
    service: Service, request: Request, change: Callable[[Session, str], None]
) -> Answer:
    name = Fields(request.body, ("mark",)).take("mark", str)
    if name is None:
        raise Refusal(400, "The field mark is missing: the name of the mark.")
    async with service.using(request.session) as session:
        await service.call(change, session, check_name("mark", name))
        return as_json(session.about())


async def feed(service: Service, request: Request) -> Answer:
    """Reads steps and answers with outputs."""
    fields = Fields(request.body, (*PROMPT, "outputs"))
    want = fields.take("outputs", str, "all")
    if want not in ("all", "last", "none"):
        raise Refusal(400, f"outputs ({ascii(want)[:60]}) must be all, last or none.")
    inputs = inputs_of(fields, service.size, service.vocabulary, service.limits)
    async with service.using(request.session) as session:
        outputs = await service.feed(session, inputs, want)
        content: dict[str, Any] = {"steps": session.place.steps}
    if outputs is not None:
        content["outputs"] = _plain(outputs)
    return as_json(content)


def _plain(outputs: Nest) -> Any:
    """Returns outputs of types that JSON has: arrays, lists of them, and objects."""
    if isinstance(outputs, np.ndarray):
        known = outputs.dtype in (np.float32, np.int32)
        return np.ascontiguousarray(outputs if known else outputs.astype(np.float32))
    if hasattr(outputs, "_asdict"):
        outputs = outputs._asdict()
    if isinstance(outputs, dict):
        return {str(name): _plain(part) for name, part in outputs.items()}
    return [_plain(part) for part in outputs]


@dataclasses.dataclass(frozen=True)
class Writing:
    """What to draw; see `generate`."""

    count: int
    seed: int
    begun: int
    sampling: Sampling
    stop: frozenset[int]
    stream: bool


def _writing_of(fields: Fields, service: Service) -> Writing:
    """Returns what a request asks to draw.

    Raises:
      Refusal: it cannot be drawn.
    """
    if service.size is None:
        raise Refusal(400, "This model does not draw tokens, for it is not a language model.")
    return Writing(
        fields.between("count", 1, service.limits.steps, min(100, service.limits.steps)),
        seed_of(fields),
        fields.between("begun", 0, MOST_BEGUN, 0),
        sampling_of(fields),
        stop_of(fields, service.size, service.vocabulary),
        fields.take("stream", bool, False),
    )


async def generate(service: Service, request: Request) -> Answer:
    """Reads a prompt, if there is one, and draws tokens, which the session reads as well."""
    known = (*PROMPT, "count", "seed", "begun", "stop", "stream", *SAMPLING)
    fields = Fields(request.body, known)
    writing = _writing_of(fields, service)
    has_prompt = any(name in fields for name in PROMPT)
    prompt = (
        inputs_of(fields, service.size, service.vocabulary, service.limits) if has_prompt else None
    )
    async with service.using(request.session) as session:
        if prompt is not None:
            await service.feed(session, prompt, "none")
        if session.place.logits is None:
            raise Refusal(
                409,
                f"Session {session.name!r} has read nothing yet; give a prompt as text or inputs.",
            )
        session.writing = True
        try:
            if writing.stream:
                return await _stream(service, session, writing, request)
            content: dict[str, Any] = {"tokens": []}
            decode = _decoder(service, session)
            if decode is not None:
                content["text"] = ""
            async for tokens in _drawn(service, session, writing, request):
                content["tokens"] += tokens
                if decode is not None:
                    content["text"] += decode(tokens)
            return as_json(content | _end(session, writing, content["tokens"]))
        finally:
            session.writing = False


async def _drawn(
    service: Service, session: Session, writing: Writing, request: Request
) -> AsyncIterator[list[int]]:
    """Yields the tokens of each round, the first one alone, until the client is gone."""
    numbers = uniforms(np.array([[0, writing.seed]]), writing.begun, writing.count)[:, 0]
    first = 0
    gone = asyncio.ensure_future(request.receive())
    try:
        while first < writing.count and not service.hurry and not gone.done():
            some = numbers[first : first + (BURST if first else 1)]
            tokens = await service.engine.write(session, some, writing.sampling, writing.stop)
            yield tokens
            first += len(tokens)
            if tokens[-1] in writing.stop:
                break
    finally:
        gone.cancel()


def _end(session: Session, writing: Writing, tokens: list[int]) -> dict[str, Any]:
    """Returns what is said at the end: why it ended, and how to go on."""
    reason = "count" if len(tokens) == writing.count else "server stopping"
    return {
        "reason": "stop" if tokens and tokens[-1] in writing.stop else reason,
        "steps": session.place.steps,
        "seed": writing.seed,
        "begun": writing.begun + len(tokens),
    }


async def _stream(service: Service, session: Session, writing: Writing, request: Request) -> Answer:
    """Sends each token as a server-sent event, until the client is gone."""
    headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")]
    await request.send({"type": "http.response.start", "status": 200, "headers": headers})
    decode = _decoder(service, session)
    drawn: list[int] = []
    kind, end = b"error", {"error": "The tokens cannot be drawn; the server's log says why."}
    try:
        async for tokens in _drawn(service, session, writing, request):
            drawn += tokens
            await _send(request, b"".join(_event(token, decode) for token in tokens))
        kind, end = b"end", _end(session, writing, drawn)
    except Exception:
        logging.exception("Session %r cannot draw tokens.", session.name)
    await _send(request, b"event: %b\ndata: %b\n\n" % (kind, orjson.dumps(end)), last=True)
    return Answer(200, sent=True)


def _decoder(service: Service, session: Session) -> TextDecoder | None:
    """Returns a decoder of what follows in a session, if the model has a vocabulary."""
    if service.vocabulary is None or session.place.last is None:
        return None
    return TextDecoder(service.vocabulary, before=[session.place.last])


def _event(token: int, decode: TextDecoder | None) -> bytes:
    content = {"token": token} if decode is None else {"token": token, "text": decode([token])}
    return b"data: %b\n\n" % orjson.dumps(content)


async def _send(request: Request, body: bytes, *, last: bool = False) -> None:
    await request.send({"type": "http.response.body", "body": body, "more_body": not last})
