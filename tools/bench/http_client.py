"""`Client`: one connection to an HTTP server that costs little beside the server it measures."""

import asyncio
import json
import time

import numpy as np


def request(method: str, path: str, body: bytes = b"", *headers: str) -> bytes:
    """Returns the bytes of a request with a JSON body."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *headers]
    if method == "POST" and not any(
        header.lower().startswith("content-type") for header in headers
    ):
        lines.append("Content-Type: application/json")
    if body or method == "POST":
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape") + body


def requests_of(session: str, work: str, steps: int, symbols: int) -> list[bytes]:
    """Returns requests that feed a session or draw its tokens, so many steps each."""
    path = f"/sessions/{session}/{work}"
    if work == "generate":
        bodies: list[dict] = [{"count": steps, "seed": seed} for seed in range(4)]
    else:
        ids = np.random.default_rng(0).integers(0, symbols, [16, steps]).tolist()
        bodies = [{"inputs": chunk, "outputs": "last"} for chunk in ids]
    return [request("POST", path, json.dumps(body).encode()) for body in bodies]


class Client(asyncio.Protocol):
    """Sends one request after another; answers must have a Content-Length."""

    def __init__(self) -> None:
        """Creates a client that is not connected; see `connect`."""
        self._data, self._ends = b"", False
        self._future: asyncio.Future | None = None
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def connect(cls, port: int) -> "Client":
        """Connects to a port of this machine."""
        _, client = await asyncio.get_running_loop().create_connection(cls, "127.0.0.1", port)
        return client

    @property
    def closed(self) -> bool:
        """Whether the server has ended the connection."""
        return self._ends or self._transport is None or self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remembers the transport of the new connection."""
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self._transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        """Fails the request that runs."""
        self._transport = None
        if self._future is not None and not self._future.done():
            self._future.set_exception(ConnectionError("The server has closed the connection."))

    def data_received(self, data: bytes) -> None:
        """Collects the bytes of an answer, and resolves its future when it is whole."""
        self._data = self._data + data if self._data else data
        head = self._data.find(b"\r\n\r\n")
        if head < 0 or self._future is None or self._future.done():
            return
        lower = self._data[: head + 2].lower()
        if b"\r\nconnection: close\r\n" in lower:
            self._ends = True
        at = lower.find(b"content-length: ")
        end = head + 4 + int(self._data[at + 16 : self._data.find(b"\r\n", at)])
        if len(self._data) >= end:
            status, body = int(self._data[9:12]), self._data[head + 4 : end]
            self._data = self._data[end:]
            self._future.set_result((status, body))

    def write(self, data: bytes) -> None:
        """Sends bytes and awaits nothing."""
        if self._transport is not None:
            self._transport.write(data)

    def close(self) -> None:
        """Ends the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    async def ask(self, data: bytes) -> tuple[int, bytes]:
        """Sends a request and returns the status and the body of its answer.

        Raises:
          ConnectionError: the server has closed the connection.
        """
        if self._transport is None:
            raise ConnectionError("The connection is closed.")
        self._future = asyncio.get_running_loop().create_future()
        self._transport.write(data)
        return await self._future


async def load(port: int, requests: list[list[bytes]], seconds: float) -> tuple[list[float], float]:
    """Sends requests for some seconds, each list over a connection of its own, in turn.

    Returns:
      The seconds that each request took, and the seconds in all.

    Raises:
      RuntimeError: an answer has another status than 200.
    """
    clients = [await Client.connect(port) for _ in requests]
    taken: list[float] = []
    began = time.perf_counter()
    end = began + seconds

    async def run(client: Client, own: list[bytes]) -> None:
        number = 0
        while (sent := time.perf_counter()) < end:
            status, body = await client.ask(own[number % len(own)])
            if status != 200:
                raise RuntimeError(f"The server answered {status}: {body[:200]!r}.")
            taken.append(time.perf_counter() - sent)
            number += 1

    await asyncio.gather(*(run(*pair) for pair in zip(clients, requests, strict=True)))
    in_all = time.perf_counter() - began
    for client in clients:
        client.close()
    return taken, in_all
