"""Bad requests: each is answered with its status and one sentence, and changes no session."""

import asyncio
import json
import re
import socket
import time

import pytest

from tbptt.serving.http import app
from tbptt.serving.http.limits import Limits, RateLimit
from tbptt.serving.http.server import Server, ServerError
from tbptt.testing import assert_same_bits
from tests.serving.http.conftest import LIMITS, Client, make_model

FEED, GENERATE = "/sessions/good/feed", "/sessions/good/generate"
NESTED = b'{"inputs": ' + b"[" * 1500 + b"]" * 1500 + b"}"
# method, path, JSON or bytes, headers; status, and what the sentence says
BAD = {
    "float ids": ("POST", FEED, {"inputs": [1, 2.5]}, 400, "from 0 to 11, but step 1 is a number"),
    "boolean ids": ("POST", FEED, {"inputs": [1, True]}, 400, "step 1 is true or false"),
    "text as ids": ("POST", FEED, {"inputs": ["1"]}, 400, "step 0 is text"),
    "null as ids": ("POST", FEED, {"inputs": [1, 2, None]}, 400, "step 2 is null"),
    "nested ids": ("POST", FEED, {"inputs": [[1], [2]]}, 400, "step 0 is a list"),
    "id too large": ("POST", FEED, {"inputs": [0, 12]}, 400, "from 0 to 11, but step 1 is 12"),
    "id below 0": ("POST", FEED, {"inputs": [-1]}, 400, "step 0 is -1"),
    "id beyond 64 bits": ("POST", FEED, {"inputs": [10**30]}, 400, "step 0 is a number"),
    "NaN": ("POST", FEED, b'{"inputs": [NaN]}', 400, "is not JSON"),
    "infinity": ("POST", FEED, b'{"inputs": [1e999]}', 400, "step 0 is|not JSON"),
    "one number": ("POST", FEED, {"inputs": 3}, 400, "list of steps, but is a whole number"),
    "an object of inputs": ("POST", FEED, {"inputs": {"a": [1]}}, 400, "but is an object"),
    "empty chunk": ("POST", FEED, {"inputs": []}, 400, "1 or more steps"),
    "huge chunk": ("POST", FEED, {"inputs": [1] * 101}, 413, "101 steps.* may have 100"),
    "no inputs": ("POST", FEED, {}, 400, "Give the steps"),
    "inputs twice": ("POST", FEED, {"inputs": [1], "text": "a"}, 400, "Give the steps"),
    "unknown character": ("POST", FEED, {"text": "abz"}, 400, "has 'z', which"),
    "text is a number": ("POST", FEED, {"text": 5}, 400, "text must be text"),
    "half a surrogate pair": ("POST", FEED, b'{"text": "\\ud800"}', 400, "is not JSON"),
    "unknown outputs": ("POST", FEED, {"inputs": [1], "outputs": "some"}, 400, "all, last or none"),
    "unknown field": ("POST", FEED, {"inputs": [1], "steps": 3}, 400, "no field 'steps'"),
    "unknown session": ("POST", "/sessions/nobody/feed", {"inputs": [1]}, 404, "session 'nobody'"),
    "not JSON": ("POST", FEED, b"inputs=1", 400, "The body is not JSON"),
    "cut JSON": ("POST", FEED, b'{"inputs": [1', 400, "The body is not JSON"),
    "not UTF-8": ("POST", FEED, b'{"text": "\xff"}', 400, "The body is not JSON"),
    "nested deeply": ("POST", FEED, NESTED, 400, "is not JSON|step 0 is a list"),
    "a list": ("POST", FEED, b"[1]", 400, "must be a JSON object, but is a list"),
    "oversized body": ("POST", FEED, b" " * 4001, 413, "more than 4000 bytes"),
    "temperature of 0": ("POST", GENERATE, {"temperature": 0}, 400, r"temperature \(0.0\)"),
    "temperature as text": ("POST", GENERATE, {"temperature": "1"}, 400, "must be a number"),
    "top_k below 0": ("POST", GENERATE, {"top_k": -1}, 400, r"top_k \(-1\) must be at least 0"),
    "top_k of 2.5": ("POST", GENERATE, {"top_k": 2.5}, 400, "top_k must be a whole number"),
    "top_k too large": ("POST", GENERATE, {"top_k": 1 << 40}, 400, "must be below"),
    "top_p above 1": ("POST", GENERATE, {"top_p": 1.5}, 400, r"top_p \(1.5\)"),
    "min_p of 1": ("POST", GENERATE, {"min_p": 1}, 400, r"min_p \(1.0\)"),
    "penalty of 0": ("POST", GENERATE, {"repetition_penalty": 0}, 400, "repet"),
    "seed below 0": ("POST", GENERATE, {"seed": -3}, 400, r"seed \(-3\) must be from 0"),
    "count of 0": ("POST", GENERATE, {"count": 0}, 400, r"count \(0\) must be from 1 to 100"),
    "count too large": ("POST", GENERATE, {"count": 101}, 400, r"count \(101\)"),
    "begun too large": ("POST", GENERATE, {"begun": 10**7}, 400, "begun"),
    "stop of two tokens": ("POST", GENERATE, {"stop": ["ab"]}, 400, "is 2 tokens, but must be one"),
    "stop out of range": ("POST", GENERATE, {"stop": [12]}, 400, "ids from 0 to 11"),
    "stream as a number": ("POST", GENERATE, {"stream": 1}, 400, "must be true or false"),
    "nothing read": ("POST", "/sessions/empty/generate", {}, 409, "has read nothing yet"),
    "name with a slash": ("POST", "/sessions", {"name": "../a"}, 400, "without slashes"),
    "path in a name": ("POST", "/sessions/..%2F..%2Fetc/feed", {"inputs": [1]}, 400, "slashes"),
    "dots as a name": ("GET", "/sessions/..", None, 400, "not . or .."),
    "control in a name": ("POST", "/sessions", {"name": "a\x00b"}, 400, r"a\\x00b"),
    "empty name": ("POST", "/sessions", {"name": ""}, 400, "has 0 characters"),
    "long name": ("POST", "/sessions", {"name": "n" * 101}, 400, "has 101 characters"),
    "name not UTF-8": ("GET", "/sessions/%ff", None, 400, "must be UTF-8"),
    "name as a number": ("POST", "/sessions", {"name": 5}, 400, "name must be text"),
    "name taken": ("POST", "/sessions", {"name": "good"}, 409, "'good' already"),
    "fork onto a name": ("POST", "/sessions/good/fork", {"name": "empty"}, 409, "already"),
    "no mark": ("POST", "/sessions/good/mark", {}, 400, "mark is missing"),
    "unknown mark": ("POST", "/sessions/good/rollback", {"mark": "b"}, 404, r"it has \['a', 'b2'"),
    "too many marks": ("POST", "/sessions/good/mark", {"mark": "c"}, 409, "has 2 marks"),
    "reset with a field": ("POST", "/sessions/good/reset", {"all": True}, 400, "none is known"),
    "wrong method": ("PUT", FEED, None, 405, "takes POST, not PUT"),
    "unknown route": ("GET", "/session", None, 404, "no such path"),
    "route of a template": ("GET", "/sessions/{name}/feeds", None, 404, "no such path"),
}  # fmt: skip
WRONG_HEADERS = {
    "content type": (dict(content_type="text/plain"), 415, "must be application/json"),
    "form": (dict(content_type="application/x-www-form-urlencoded"), 415, "application/json"),
    "wrong host": (dict(host="evil.example:80"), 421, "not 'evil.example', but 127.0.0.1"),
    "another origin": (dict(origin="http://evil.example"), 403, "Another site's page"),
    "no origin": (dict(origin="null"), 403, "Another site's page"),
}


@pytest.fixture
def good(ask, server):
    """A client, with a session that has read something and may not change."""
    for name in ("good", "empty"):
        ask.ok("POST", "/sessions", {"name": name})
    ask.ok("POST", FEED, {"inputs": [1, 2, 3]})
    for name in ("a", "b2"):
        ask.ok("POST", "/sessions/good/mark", {"mark": name})
    streamer = server.service.streamer
    before = streamer.state("good"), len(server.service.sessions)
    yield ask
    assert_same_bits(streamer.state("good"), before[0])
    found = ask.ok("GET", "/sessions/good")
    assert (found["steps"], found["writing"]) == (3, False)
    assert len(server.service.sessions) == before[1]


def check(status, body, expected, sentence):
    content = json.loads(body)
    assert list(content) == ["error"]
    error = content["error"]
    assert (status, bool(re.search(sentence, error))) == (expected, True), (status, error)
    assert re.fullmatch(r"[^\n]{10,600}\.", error), error
    assert "Traceback" not in error


def test_each_bad_request_has_its_sentence(good):
    """One test for the table: opening sessions for each of 60 would cost more than they do."""
    assert len(BAD) > 50
    for name, (method, path, content, status, sentence) in BAD.items():
        given = dict(body=content) if isinstance(content, bytes) else dict(content=content)
        answer = good(method, path, **given)
        print(name)  # shown if it fails
        check(answer.status, answer.body, status, sentence)


@pytest.mark.parametrize("name", WRONG_HEADERS)
def test_wrong_headers(good, name):
    headers, status, sentence = WRONG_HEADERS[name]
    answer = good("POST", FEED, {"inputs": [1]}, **headers)
    check(answer.status, answer.body, status, sentence)


def test_an_expired_session_is_gone(good, server):
    good.ok("POST", "/sessions", {"name": "old"})
    server.service.sessions.find("old").used -= LIMITS.idle_seconds + 1
    answer = good("POST", "/sessions/old/feed", {"inputs": [1]})
    check(answer.status, answer.body, 404, "has expired after 1800 seconds without use")
    good.ok("POST", "/sessions", {"name": "old"})  # the name is free again
    server.service.sessions.find("old").used -= LIMITS.idle_seconds + 1
    assert asyncio.run_coroutine_threadsafe(
        server.service.call(server.service.sessions.drop_expired), server.service.engine.loop
    ).result() == 1  # fmt: skip


def test_too_many_sessions(good):
    for k in range(LIMITS.sessions - 2):
        good.ok("POST", "/sessions", {"name": f"more{k}"})
    for path in ("/sessions", "/sessions/good/fork"):
        answer = good("POST", path)
        check(answer.status, answer.body, 429, "There are 12 sessions")
        assert 1000 < int(answer.headers["retry-after"]) <= LIMITS.idle_seconds
    for k in range(LIMITS.sessions - 2):
        good.ok("DELETE", f"/sessions/more{k}")


def test_too_many_requests(good, server, monkeypatch):
    monkeypatch.setattr(server.service, "running", LIMITS.waiting)
    answer = good("POST", FEED, {"inputs": [1]})
    check(answer.status, answer.body, 503, "512 requests run or wait already")
    assert answer.headers["retry-after"] == "1"
    assert good("GET", "/health").status == 200
    monkeypatch.setattr(server.service, "running", 0)
    monkeypatch.setattr(server.service, "rate", RateLimit(0.01))
    assert good("GET", "/health").status == 200
    answer = good("GET", "/health")
    check(answer.status, answer.body, 429, "requests a second")
    assert 90 < int(answer.headers["retry-after"]) <= 101
    monkeypatch.setattr(server.service, "rate", RateLimit(0.0))
    monkeypatch.setattr(server.service, "stopping", True)
    answer = good("POST", FEED, {"inputs": [1]})
    check(answer.status, answer.body, 503, "The server is stopping")
    monkeypatch.setattr(server.service, "stopping", False)


def test_a_failure_is_told_without_its_trace(good, server, monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("secret")

    monkeypatch.setattr(server.service.sessions, "reset", fail)
    answer = good("POST", "/sessions/empty/reset")
    check(answer.status, answer.body, 500, "The server failed; its log says why")
    assert "secret" not in answer.body.decode()


def test_a_failure_in_the_second_piece_undoes_the_first(good, server, monkeypatch):
    feed, calls = server.service.engine.feed, []

    async def fail(session, chunk):
        calls.append(len(chunk))
        if len(calls) == 2:
            raise RuntimeError("no memory")
        return await feed(session, chunk)

    monkeypatch.setattr(server.service.engine, "feed", fail)
    answer = good("POST", FEED, {"inputs": [1] * 90, "outputs": "none"})
    check(answer.status, answer.body, 500, "The server failed")
    assert calls == [64, 26]


def raw(port, data, *, pause=0.0):
    """Sends bytes and returns all that comes back until the server closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(data)
        time.sleep(pause)
        parts = []
        while part := connection.recv(1 << 16):
            parts.append(part)
    return b"".join(parts)


HEAD = f"POST {FEED} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode()
CONNECTIONS = {
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\r\n\r\n", 400, "not an HTTP"),
    "wrong length": (HEAD + b"Content-Length: -5\r\n\r\n", 400, "not an HTTP"),
    "huge headers": (HEAD + b"X-A: " + b"a" * 40_000, 431, "more than 32768 bytes"),
    "huge length": (HEAD + b"Content-Length: 99999999999\r\n\r\n1", 413, "more than 4000"),
    "huge chunks": (
        HEAD + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        + b"1000\r\n%b\r\n" % (b" " * 4096) * 2 + b"0\r\n\r\n", 413, "more than 4000",
    ),
    "slow head": (HEAD, 408, "did not arrive completely within 1 seconds"),
    "slow body": (HEAD + b'Content-Length: 20\r\n\r\n{"inp', 408, "did not arrive completely"),
    "nothing at all": (b"", 408, "did not arrive completely"),
    "no host": (b"GET /sessions HTTP/1.0\r\n\r\n", 421, "This server is not ''"),
}  # fmt: skip


def test_bad_connections(good):
    for name, (data, status, sentence) in CONNECTIONS.items():
        print(name)
        head, _, body = raw(good.port, data).partition(b"\r\n\r\n")
        check(int(head.split(b" ")[1]), body, status, sentence)


def test_a_cut_connection_changes_nothing(good):
    with socket.create_connection(("127.0.0.1", good.port)) as connection:
        connection.sendall(HEAD + b'Content-Length: 20\r\n\r\n{"inputs": [1')
    time.sleep(0.05)


def test_a_client_that_does_not_read_is_cut_off(good):
    """Thousands of pages are asked for over one connection, and none is read for a second."""
    page = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", good.port))
        connection.settimeout(20)

        def send_on():
            for _ in range(100):
                connection.sendall(page * 200)
                time.sleep(0.02)

        with pytest.raises(ConnectionError):
            send_on()


def test_too_many_connections(good):
    held = [socket.create_connection(("127.0.0.1", good.port)) for _ in range(LIMITS.connections)]
    head, _, body = raw(good.port, b"").partition(b"\r\n\r\n")
    for connection in held:
        connection.close()
    check(int(head.split(b" ")[1]), body, 503, "20 connections already")
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            assert good("GET", "/health").status == 200
            break
        except AssertionError:
            time.sleep(0.02)


def test_a_client_that_leaves_stops_the_writing(ask, server):
    """The session has read the tokens that were drawn by then, and goes on."""
    ask.ok("POST", "/sessions", {"name": "ann"})
    ask.ok("POST", "/sessions/ann/feed", {"inputs": [1]})
    ask.ok("POST", "/sessions/ann/fork", {"name": "bob"})
    whole = ask.ok("POST", "/sessions/bob/generate", {"count": 100, "seed": 1})["tokens"]
    body = json.dumps({"count": 100, "seed": 1, "stream": True}).encode()
    head = HEAD.replace(b"good/feed", b"ann/generate") + b"Content-Length: %d\r\n\r\n" % len(body)
    with socket.create_connection(("127.0.0.1", ask.port)) as connection:
        connection.sendall(head + body)
        connection.recv(100)
        busy = [ask("POST", f"/sessions/ann/{action}") for action in ("reset", "fork")]
    for answer in busy:
        assert answer.status in (200, 201) or "is writing; wait" in answer.json["error"]
    deadline = time.monotonic() + 10
    while (found := ask.ok("GET", "/sessions/ann"))["writing"]:
        assert time.monotonic() < deadline
    if any(answer.status == 409 for answer in busy):
        steps = found["steps"]
        assert 1 <= steps <= 101
        ask.ok("POST", "/sessions/bob/reset")
        ask.ok("POST", "/sessions/bob/feed", {"inputs": [1]})
        for token in whole[: steps - 1]:
            ask.ok("POST", "/sessions/bob/feed", {"inputs": [token], "outputs": "none"})
        states = [server.service.streamer.state(name) for name in ("ann", "bob")]
        assert_same_bits(*states)


def call(application, path, **headers):
    """Asks an ASGI application without a server, and returns status and body."""
    sent = []

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": "http.request", "body": b""}

    pairs = [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()]
    scope = {"type": "http", "method": "GET", "raw_path": path.encode(), "headers": pairs}
    asyncio.run(application(scope, receive, send))
    return sent[0]["status"], sent[1]["body"]


def test_a_token_is_asked_for(server):
    guarded = app.App(server.service, token="t" * 20, hosts=None)
    for headers in (
        {}, dict(authorization="Bearer " + "t" * 19), dict(authorization="t" * 20),
        dict(authorization="Bearer \xff"),
    ):  # fmt: skip
        for path in ("/model", "/sessions", "/nothing"):
            check(*call(guarded, path, host="any.example", **headers), 401, "needs its token")
    right = dict(host="any.example", authorization="Bearer " + "t" * 20)
    assert call(guarded, "/model", **right)[0] == 200
    assert call(guarded, "/health", host="any.example")[0] == 200


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(host="0.0.0.0"), "a token is needed"),
        (dict(host="0.0.0.0", token="short"), "16 or more printable ASCII"),
        (dict(host="203.0.113.7", token="t" * 20), "cannot be had"),
        (dict(port=70000), "cannot be had"),
        (dict(port=0, batch_rows=0), "batch_sizes"),
    ],
)
def test_servers_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        Server(make_model(), jit_compile=False, **settings)


def test_a_port_that_is_taken(server):
    port = Client(server).port
    with pytest.raises(ServerError, match=rf"127.0.0.1:{port} cannot be had .*Choose another port"):
        Server(make_model(), port=port)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(body_bytes=0), r"body_bytes \(0\) must be at least 1"),
        (dict(idle_seconds=0.0), r"idle_seconds \(0.0\) must be above 0"),
        (dict(rate=-1.0), r"rate \(-1.0\)"),
        (dict(read_seconds=float("nan")), r"read_seconds \(nan\) must be finite"),
    ],
)
def test_limits_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        Limits(**settings)
