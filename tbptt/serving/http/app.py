"""`App`: the ASGI application. It checks where a request comes from, and finds its handler."""

import hmac
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from absl import logging

from tbptt.serving.http import handlers
from tbptt.serving.http.handlers import Answer, Request, as_json
from tbptt.serving.http.limits import Refusal
from tbptt.serving.http.service import Service
from tbptt.serving.http.sessions import name_in_path

Handler = Callable[[Service, Request], Awaitable[Answer]]
Message = dict[str, Any]
ROUTES: dict[str, dict[str, Handler]] = {
    "/": {"GET": handlers.page},
    "/health": {"GET": handlers.health},
    "/metrics": {"GET": handlers.metrics},
    "/model": {"GET": handlers.model},
    "/sessions": {"GET": handlers.list_sessions, "POST": handlers.open_session},
    "/sessions/{name}": {"GET": handlers.show_session, "DELETE": handlers.close_session},
    "/sessions/{name}/feed": {"POST": handlers.feed},
    "/sessions/{name}/reset": {"POST": handlers.reset},
    "/sessions/{name}/fork": {"POST": handlers.fork},
    "/sessions/{name}/mark": {"POST": handlers.mark},
    "/sessions/{name}/rollback": {"POST": handlers.rollback},
    "/sessions/{name}/generate": {"POST": handlers.generate},
}
OPEN = ("/", "/health")  # without a token: they say nothing of the model or its sessions
LIGHT = (handlers.page, handlers.health, handlers.metrics)  # answered however many wait
UNKNOWN = "unknown"  # the route of what has none, in metrics
DISCARDED = 8 << 20  # bytes of a body that is too large that are read before it is refused
LOCAL = ("127.0.0.1", "localhost", "[::1]")
ALWAYS = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"))


class App:
    """Answers HTTP requests: an ASGI application, as uvicorn runs it."""

    def __init__(
        self, service: Service, *, token: str | None = None, hosts: Sequence[str] | None = LOCAL
    ) -> None:
        """Creates it.

        Args:
          service: does the work.
          token: what clients must send as `Authorization: Bearer TOKEN`. None: nothing.
          hosts: names of this server that requests may use, without port: a page of another name,
            which a browser was led to, gets nothing. None: any.
        """
        self._service, self._hosts = service, hosts
        self._token = None if token is None else f"Bearer {token}".encode()

    async def __call__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        """Handles one request, or the start and the end of the server."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        began = time.perf_counter()
        service, method, route = self._service, scope["method"], UNKNOWN
        service.running += 1
        try:
            route, name = _route(scope["raw_path"].decode("latin-1"))
            answer = await self._answer(scope, receive, send, route, name)
        except Refusal as refusal:
            body = as_json({"error": refusal.sentence}, refusal.status)
            answer = Answer(body.status, body.body, (*body.headers, *refusal.headers))
        except ConnectionError:  # the client has left
            return
        except Exception:
            logging.exception("%s %s failed.", method, route)
            answer = as_json({"error": "The server failed; its log says why."}, 500)
        finally:
            service.running -= 1
        known = method if method in ("GET", "POST", "DELETE") else "other"
        service.metrics.count(known, route, answer.status, time.perf_counter() - began)
        if not answer.sent:
            await _send(send, answer)

    async def _answer(
        self, scope: Message, receive: Any, send: Any, route: str, name: str
    ) -> Answer:
        """Checks a request and returns its handler's answer.

        Raises:
          Refusal: it is not allowed.
        """
        service, headers = self._service, dict(scope["headers"])
        self._check_origin(headers)
        wait = service.rate.wait((scope.get("client") or ("",))[0])
        if wait:
            raise Refusal(
                429,
                f"A client may send {service.limits.rate:g} requests a second; wait a moment.",
                retry_after=str(int(wait) + 1),
            )
        if route not in OPEN:
            self._check_token(headers)
        if route == UNKNOWN:
            raise Refusal(404, f"There is no such path here; there are {', '.join(ROUTES)}.")
        methods = ROUTES[route]
        handler = methods.get(scope["method"])
        if handler is None:
            allowed = ", ".join(methods)
            raise Refusal(405, f"{route} takes {allowed}, not {scope['method']}.", allow=allowed)
        self._check_load(handler)
        session = name_in_path(name) if name else ""
        body = b""
        if scope["method"] == "POST":
            _check_content_type(headers)
            body = await self._body(headers, receive)
        return await handler(service, Request(session, body, receive, send))

    def _check_origin(self, headers: dict[bytes, bytes]) -> None:
        """Refuses what the page of another server sends, through a browser or another name."""
        host = headers.get(b"host", b"").decode("latin-1")
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        if self._hosts is not None and name.lower() not in self._hosts:
            raise Refusal(
                421,
                f"This server is not {ascii(name)[:80]}, but {', '.join(self._hosts)}; use one of "
                "these names, or allow another one with --allowed_hosts.",
            )
        origin = headers.get(b"origin")
        if origin is not None and origin.decode("latin-1").partition("://")[2] != host:
            raise Refusal(
                403, "Another site's page sent this request, and only this server's own page may."
            )

    def _check_token(self, headers: dict[bytes, bytes]) -> None:
        if self._token is None:
            return
        if not hmac.compare_digest(headers.get(b"authorization", b""), self._token):
            raise Refusal(
                401,
                "This server needs its token, as the header Authorization: Bearer TOKEN.",
                www_authenticate="Bearer",
            )

    def _check_load(self, handler: Handler) -> None:
        service = self._service
        if service.stopping:
            raise Refusal(503, "The server is stopping; try again later.", retry_after="5")
        if service.running > service.limits.waiting and handler not in LIGHT:
            raise Refusal(
                503,
                f"{service.limits.waiting} requests run or wait already; try again in a moment.",
                retry_after="1",
            )

    async def _body(self, headers: dict[bytes, bytes], receive: Any) -> bytes:
        """Returns the body of a request.

        Raises:
          Refusal: it is too large.
          ConnectionError: the client has left.
        """
        most = self._service.limits.body_bytes
        told = headers.get(b"content-length", b"0")
        size = int(told) if told.isdigit() and len(told) < 20 else 0
        message = await receive()
        body = message.get("body", b"")
        if not message.get("more_body") and message["type"] == "http.request" and len(body) <= most:
            return body
        parts, count = [body], len(body)
        while message["type"] == "http.request" and message.get("more_body"):
            if max(size, count) > DISCARDED:
                break
            message = await receive()
            count += len(message.get("body", b""))
            if count <= most:
                parts.append(message.get("body", b""))
        if message["type"] != "http.request":
            raise ConnectionError("The client has left.")
        if max(size, count) > most:
            raise Refusal(
                413,
                f"The body has more than {most} bytes, the most there may be; send less at once.",
                connection="close",
            )
        return b"".join(parts)

    async def _live(self, receive: Any, send: Any) -> None:
        """Starts the service when the server starts, and ends it when the server ends."""
        await receive()
        self._service.start()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._service.stop()
        await send({"type": "lifespan.shutdown.complete"})


def _route(path: str) -> tuple[str, str]:
    """Returns the route of a path, and the name of the session in it."""
    parts = path.split("/")
    if len(parts) >= 3 and parts[1] == "sessions" and parts[2]:
        route = "/".join(["/sessions/{name}", *parts[3:]])
        return (route, parts[2]) if route in ROUTES else (UNKNOWN, "")
    return (path, "") if path in ROUTES and "{" not in path else (UNKNOWN, "")


def _check_content_type(headers: dict[bytes, bytes]) -> None:
    """Refuses what a form of another site could send."""
    given = headers.get(b"content-type", b"")
    if given.partition(b";")[0].strip().lower() != b"application/json":
        shown = given.decode("latin-1")[:80]
        raise Refusal(415, f"The Content-Type must be application/json, but is {shown!a}.")


async def _send(send: Callable[[Message], Awaitable[None]], answer: Answer) -> None:
    length = (b"content-length", str(len(answer.body)).encode())
    headers = [*answer.headers, *ALWAYS, length]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})
