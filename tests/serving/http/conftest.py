"""One server for all tests: a tiny language model over 12 characters, and narrow limits."""

import asyncio
import http.client
import json
import urllib.parse

import pytest

import tbptt
from tbptt.serving.http.limits import Limits
from tbptt.serving.http.server import Server
from tbptt.streams.corpus import Vocabulary

SIZE = 12
LIMITS = Limits(
    body_bytes=4000, steps=100, values=2000, sessions=12, marks=2, connections=20,
    read_seconds=1.0, write_seconds=1.0, grace_seconds=0.2,
)  # fmt: skip
VOCABULARY = Vocabulary("characters", tuple("\n abcdefghi."))


def make_model(seed: int = 3) -> tbptt.LanguageModel:
    seeds = tbptt.split_seed(tbptt.make_seed(seed), 2)
    model = tbptt.LanguageModel(SIZE, 4, tbptt.LSTM(4, 6, seed=seeds[0]), seed=seeds[1])
    model.readout.w.assign(6.0 * model.readout.w)
    return model


class Asked:
    """An answer: its status, its headers and its JSON or text."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        body = response.read()
        self.status, self.headers, self.body = response.status, response.headers, body
        is_json = response.headers["content-type"] == "application/json"
        self.json = json.loads(body) if is_json else None


class Client:
    """Asks a server, over one connection as long as it lasts."""

    def __init__(self, server: Server) -> None:
        self.port = int(server.address.rpartition(":")[2])
        self._connection: http.client.HTTPConnection | None = None

    def __call__(self, method: str, path: str, content=None, *, body=None, **headers) -> Asked:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if method == "POST":
            given = {"content-type": "application/json"} | given
            body = json.dumps({} if content is None else content).encode() if body is None else body
        for attempt in range(2):
            if self._connection is None:
                self._connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
            try:
                self._connection.request(method, path, body, given)
                response = self._connection.getresponse()
                break
            except (ConnectionError, http.client.HTTPException):
                self.close()
                if attempt:
                    raise
        asked = Asked(response)
        if response.will_close:
            self.close()
        return asked

    def ok(self, method: str, path: str, content=None):
        """Returns the JSON of an answer of status 200 or 201."""
        asked = self(method, path, content)
        assert asked.status in (200, 201), asked.body
        return asked.json

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


@pytest.fixture(scope="session")
def model():
    return make_model()


@pytest.fixture(scope="session")
def server(model):
    """A server that many tests use."""
    running = Server(
        model, {"vocabulary": VOCABULARY}, port=0, limits=LIMITS, batch_rows=4, jit_compile=False
    )
    running.start()
    yield running
    running.stop()


@pytest.fixture
def ask(server):
    """A client of the server, whose sessions are closed after a test."""
    client = Client(server)
    yield client
    for session in client.ok("GET", "/sessions")["sessions"]:
        name = urllib.parse.quote(session["name"])
        assert client("DELETE", f"/sessions/{name}").status == 200
    service = server.service
    call = service.call(service.sessions.drop_expired)
    asyncio.run_coroutine_threadsafe(call, service.engine.loop).result()
    assert len(service.sessions) == 0
    client.close()
