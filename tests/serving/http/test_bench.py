"""The bench of the server: its client, its requests, and that it finds what is wrong."""

import asyncio
import os

import pytest

from tbptt.serving.http.reading import Fields
from tests.serving.http.conftest import SIZE
from tools.bench import http_client, server_soak


def test_random_requests_are_answered_as_they_must(ask):
    """Two clients with 500 requests, of which some are compared with a session of their own."""
    found = asyncio.run(server_soak.visit(ask.port, os.getpid(), SIZE, 500, 3, connections=2))
    assert found["requests"] >= 500
    assert found["sessions_left"] == 0
    assert found["statuses"][200] > 200
    assert found["statuses"][400] > 30
    assert set(found["statuses"]) <= {200, 201, 400, 403, 404, 405, 413, 415}


def visit(ask, requests, seed=3):
    """Sends requests over one connection, a fifth of the feeds being compared."""

    async def run():
        visitor = server_soak.Visitor(0, ask.port, SIZE, seed, [requests])
        try:
            await visitor.run()
        finally:
            visitor.leave()
            await asyncio.sleep(0)
        return visitor

    return asyncio.run(run())


def test_a_wrong_answer_is_found(ask, server, monkeypatch):
    monkeypatch.setattr(server_soak, "AGAIN", 0.2)
    assert visit(ask, 80).compared > 2
    sessions = server.service.sessions
    monkeypatch.setattr(sessions, "rollback", lambda *_: None)  # marks are forgotten

    def visits():
        for seed in range(20):
            visit(ask, 60, seed)

    with pytest.raises(server_soak.WrongAnswer, match=r"steps|tokens|outputs"):
        visits()


def test_a_bad_request_that_is_taken_is_found(ask, monkeypatch):
    monkeypatch.setattr(Fields, "__init__", lambda self, body, known: None)
    with pytest.raises(server_soak.WrongAnswer, match="500"):
        visit(ask, 60)


@pytest.mark.parametrize("work", ["feed", "generate"])
def test_requests_are_measured(ask, work):
    names = ["a", "b"]
    for name in names:
        ask.ok("POST", "/sessions", {"name": name})
        ask.ok("POST", f"/sessions/{name}/feed", {"inputs": [1]})
    requests = [http_client.requests_of(name, work, 1, SIZE) for name in names]
    taken, seconds = asyncio.run(http_client.load(ask.port, requests, 0.2))
    assert 0.2 <= seconds < 5
    assert len(taken) > 4
    assert 0 < min(taken) <= max(taken) < 5
    steps = [ask.ok("GET", f"/sessions/{name}")["steps"] for name in names]
    assert sum(steps) == len(taken) + 2
