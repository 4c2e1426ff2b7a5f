"""`Connection`: uvicorn's connection with limits on slow, oversized and too many clients."""

import asyncio
from typing import Any

import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from tbptt.serving.http.limits import Limits

HEAD_BYTES = 32 << 10  # of a request's first line and headers


def connection_class(limits: Limits) -> type[asyncio.Protocol]:
    """Returns a class of connections with these limits, for uvicorn's `http`."""

    class Limited(Connection):
        pass

    Limited.limits = limits
    return Limited


class Connection(HttpToolsProtocol):
    """A connection that ends if a client sends or reads too slowly, with an answer if it can."""

    limits = Limits()

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Creates a connection, as uvicorn does."""
        super().__init__(*arguments, **options)
        self._reads: asyncio.TimerHandle | None = None
        self._writes: asyncio.TimerHandle | None = None
        self._in_head, self._in_message, self._head_bytes = True, True, 0

    def connection_made(self, transport: Any) -> None:
        """Begins a connection, unless there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            self._refuse(503, f"This server has {self.limits.connections} connections already.")
        else:
            self._expect_more()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancels the timers of a connection that has ended."""
        for timer in (self._reads, self._writes):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Reads a part of a request."""
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES:
                self._refuse(431, f"The headers have more than {HEAD_BYTES} bytes.")
                return
        if not self._in_message:
            if self._reads is not None:
                self._reads.cancel()
                self._reads = None
        elif self._reads is None:
            self._expect_more()

    def on_message_begin(self) -> None:
        """Notes that a request begins, whose headers come first."""
        super().on_message_begin()
        self._in_head = self._in_message = True
        self._head_bytes = 0

    def on_headers_complete(self) -> None:
        """Ends the headers of a request."""
        self._in_head, self._head_bytes = False, 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Notes that a request has arrived whole, so that no timer runs."""
        self._in_message = False
        super().on_message_complete()

    def pause_writing(self) -> None:
        """Begins to wait for a client that does not read."""
        super().pause_writing()
        self._writes = self.loop.call_later(self.limits.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """Goes on with a client that reads again."""
        super().resume_writing()
        if self._writes is not None:
            self._writes.cancel()
            self._writes = None

    def send_400_response(self, msg: str) -> None:
        """Refuses what is not HTTP."""
        self._refuse(400, "This is not an HTTP/1.1 request.")

    def _expect_more(self) -> None:
        self._reads = self.loop.call_later(self.limits.read_seconds, self._too_slow)

    def _too_slow(self) -> None:
        self._reads = None
        if self._in_message:
            seconds = f"{self.limits.read_seconds:g}"
            self._refuse(408, f"The request did not arrive completely within {seconds} seconds.")

    def _refuse(self, status: int, sentence: str) -> None:
        """Answers with a sentence and ends the connection."""
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            body = orjson.dumps({"error": sentence})
            length = str(len(body)).encode()
            kind = b"content-type: application/json\r\nconnection: close\r\ncontent-length: "
            retry = b"retry-after: 1\r\n" if status == 503 else b""
            self.transport.write(STATUS_LINE[status] + retry + kind + length + b"\r\n\r\n" + body)
        self.transport.close()
