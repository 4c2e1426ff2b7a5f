"""Sends random good and bad requests to a server, and checks every answer.

Clients over 64 connections open, feed, fork, mark, roll back, reset and close sessions, and draw
tokens; one request in four is bad. A client remembers what each of its sessions has read, and now
and then compares a session with a new one that reads the same alone: the outputs must agree to the
bit, because the server runs all batches in one size. Every bad request must be answered 4xx with
one sentence. At the end no session may be left, and the server's memory after the first tenth may
not have grown by more than a few per cent.
"""

import asyncio
import collections
import json
import pathlib
import random
import time
from typing import Any

import numpy as np
import tqdm

from tools.bench.http_client import Client, request

CONNECTIONS = 64
BAD = 0.25  # the part of bad requests
LONGEST = 400  # tokens that a session has read when it is closed
MOST_SESSIONS = 4  # of a client
GROWTH = 1.05  # of memory, after the first tenth
AGAIN = 0.01  # the part of feeds after which a session is compared


class WrongAnswer(AssertionError):
    """An answer that a server may not give."""


class Story:
    """What a session has read, as chunks and draws that another session can repeat."""

    def __init__(self, name: str) -> None:
        """Creates the story of a session that has read nothing."""
        self.name = name
        self.events: list[tuple[str, Any]] = []
        self.marks: dict[str, list[tuple[str, Any]]] = {}

    @property
    def steps(self) -> int:
        """The number of tokens that were read."""
        return sum(len(x) if kind == "feed" else x["count"] for kind, x in self.events)


class Visitor:
    """One connection that sends requests and checks their answers."""

    def __init__(self, number: int, port: int, size: int, seed: int, left: list[int]) -> None:
        """Creates a visitor; `left[0]` is the number of requests that all may still send."""
        self.random = random.Random(f"{seed}-{number}")
        self.number, self.port, self.size, self.left = number, port, size, left
        self.stories: list[Story] = []
        self.statuses: collections.Counter[int] = collections.Counter()
        self.compared = self.made = 0
        self.client: Client | None = None

    async def ask(self, method: str, path: str, content: Any = None, *headers: str) -> Any:
        """Sends one request and returns status and content of the answer."""
        if self.client is None or self.client.closed:
            self.leave()
            self.client = await Client.connect(self.port)
        self.left[0] -= 1
        data = content
        if not isinstance(content, bytes):
            body = b"" if content is None else json.dumps(content).encode()
            data = request(method, path, body, *headers)
        status, answer = await self.client.ask(data)
        self.statuses[status] += 1
        if path == "raw":
            self.leave()
        return status, json.loads(answer)

    async def good(self, method: str, path: str, content: Any = None) -> Any:
        """Sends a request that must be answered 200 or 201, and returns the content."""
        status, answer = await self.ask(method, path, content)
        if status not in (200, 201):
            raise WrongAnswer(f"{method} {path} {content}: {status} {answer}")
        return answer

    async def bad(self, method: str, path: str, content: Any = None, *headers: str) -> None:
        """Sends a request that must be answered 4xx with one sentence."""
        status, answer = await self.ask(method, path, content, *headers)
        error = answer.get("error", "") if isinstance(answer, dict) else ""
        if not (400 <= status < 500 and error.endswith(".") and "\n" not in error):
            raise WrongAnswer(f"{method} {path} {content!r:.200}: {status} {answer}")

    async def run(self) -> None:
        """Sends requests until no more are left, and closes all sessions."""
        while self.left[0] > 0:
            if self.random.random() < BAD:
                await self.bad(*self.random.choice(self.wrong()))
            elif not self.stories or self.random.random() < 0.05:
                await self.open()
            else:
                await self.step(self.random.choice(self.stories))
        for story in list(self.stories):
            await self.close(story)
        self.leave()

    def leave(self) -> None:
        """Closes the connection to the server; the next request opens another one."""
        if self.client is not None:
            self.client.close()
            self.client = None

    async def open(self) -> None:
        """Opens a session."""
        if len(self.stories) >= MOST_SESSIONS:
            await self.close(self.random.choice(self.stories))
        story = Story(self.name())
        await self.good("POST", "/sessions", {"name": story.name})
        self.stories.append(story)

    def name(self) -> str:
        """Returns a name that was not used before."""
        self.made += 1
        return f"c{self.number}-{self.made}"

    async def close(self, story: Story) -> None:
        """Closes a session."""
        self.stories.remove(story)
        await self.good("DELETE", f"/sessions/{story.name}")

    async def step(self, story: Story) -> None:
        """Does something with a session."""
        if story.steps > LONGEST:
            await self.close(story)
            return
        what = self.random.random()
        path = f"/sessions/{story.name}"
        if what < 0.7:
            await self.feed(story)
        elif what < 0.8 and story.events:
            await self.generate(story)
        elif what < 0.84:
            name = self.random.choice("ab")
            await self.good("POST", f"{path}/mark", {"mark": name})
            story.marks[name] = list(story.events)
        elif what < 0.88 and story.marks:
            name = self.random.choice(sorted(story.marks))
            await self.good("POST", f"{path}/rollback", {"mark": name})
            story.events = list(story.marks[name])
        elif what < 0.9:
            await self.good("POST", f"{path}/reset", {})
            story.events = []
        elif what < 0.92 and len(self.stories) < MOST_SESSIONS:
            twin = Story(self.name())
            await self.good("POST", f"{path}/fork", {"name": twin.name})
            twin.events = list(story.events)
            twin.marks = {name: list(events) for name, events in story.marks.items()}
            self.stories.append(twin)
        else:
            found = await self.good("GET", path)
            if found["steps"] != story.steps:
                raise WrongAnswer(f"{story.name} has read {story.steps} steps, not {found}")

    async def feed(self, story: Story) -> None:
        """Feeds a chunk, most often of one token; now and then compares the outputs."""
        count = 1 if self.random.random() < 0.7 else self.random.randint(2, 80)
        ids = [self.random.randrange(self.size) for _ in range(count)]
        body = {"inputs": ids, "outputs": "last"}
        story.events.append(("feed", ids))
        answer = await self.good("POST", f"/sessions/{story.name}/feed", body)
        if answer["steps"] != story.steps or len(answer["outputs"]) != 1:
            raise WrongAnswer(f"{story.name} has read {story.steps} steps, not {answer['steps']}")
        if self.random.random() < AGAIN:
            await self.compare(story, answer["outputs"])

    async def generate(self, story: Story) -> None:
        """Draws some tokens."""
        settings = {
            "count": self.random.randint(1, 12),
            "seed": self.random.randrange(1 << 40),
            "temperature": self.random.choice([0.5, 1.0, 1.5]),
            "top_k": self.random.choice([0, 3, 50]),
            "top_p": self.random.choice([1.0, 0.9]),
            "repetition_penalty": self.random.choice([1.0, 1.3]),
        }
        answer = await self.good("POST", f"/sessions/{story.name}/generate", settings)
        story.events.append(("generate", settings | {"tokens": answer["tokens"]}))
        if answer["steps"] != story.steps or len(answer["tokens"]) != settings["count"]:
            raise WrongAnswer(f"{story.name}: {settings} gave {answer}")

    async def compare(self, story: Story, outputs: Any) -> None:
        """Repeats what a session has read in a new one, and compares tokens and outputs."""
        twin = f"/sessions/{(name := self.name())}"
        await self.good("POST", "/sessions", {"name": name})
        answer: Any = {}
        for kind, content in story.events:
            if kind == "feed":
                body = {"inputs": content, "outputs": "last"}
            else:
                body = {k: v for k, v in content.items() if k != "tokens"}
            answer = await self.good("POST", f"{twin}/{kind}", body)
            if kind == "generate" and answer["tokens"] != content["tokens"]:
                raise WrongAnswer(f"{story.name}: other tokens for {content}: {answer}")
        if answer["outputs"] != outputs:
            raise WrongAnswer(f"{story.name}: other outputs after {len(story.events)} requests")
        await self.good("DELETE", twin)
        self.compared += 1

    def wrong(self) -> list[tuple]:
        """Returns bad requests to choose from."""
        story = self.random.choice(self.stories).name if self.stories else "none"
        feed, generate = f"/sessions/{story}/feed", f"/sessions/{story}/generate"
        garbage = bytes(self.random.randrange(256) for _ in range(self.random.randrange(1, 60)))
        head = f"POST {feed} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        sized = f"{head}Content-Length: {len(garbage)}\r\n\r\n".encode() + garbage
        cut = request("POST", feed, b'{"inputs": [1')
        return [
            ("POST", feed, {"inputs": [self.size + self.random.randrange(9)]}),
            ("POST", feed, {"inputs": [-1, 2]}),
            ("POST", feed, {"inputs": [0.5]}),
            ("POST", feed, {"inputs": []}),
            ("POST", feed, {"inputs": [[1]]}),
            ("POST", feed, {"inputs": [1] * 5000}),
            ("POST", feed, {"inputs": [True]}),
            ("POST", feed, {"other": [1]}),
            ("POST", feed, {"inputs": [1]}, "Content-Type: text/plain"),
            ("POST", feed, {"inputs": [1]}, "Origin: http://other.example"),
            ("POST", feed, sized),
            ("POST", feed, cut),
            ("POST", "raw", b"\x16\x03\x01" + garbage + b"\r\n\r\n"),
            ("POST", "/sessions/nobody/feed", {"inputs": [1]}),
            ("POST", "/sessions", {"name": "../" + "x" * self.random.randrange(200)}),
            ("POST", "/sessions", {"name": "\x00"}),
            ("POST", generate, {"temperature": -self.random.random()}),
            ("POST", generate, {"count": 10**6}),
            ("POST", generate, {"top_p": 2}),
            ("POST", f"/sessions/{story}/rollback", {"mark": "z"}),
            ("GET", "/sessions/%2e%2e%2fx"),
            ("GET", "/nothing"),
            ("PUT", "/sessions"),
        ]


def memory_of(process: int) -> int:
    """Returns the resident bytes of a process."""
    return int(pathlib.Path(f"/proc/{process}/statm").read_text().split()[1]) * 4096


async def visit(
    port: int, process: int, size: int, requests: int, seed: int, connections: int = CONNECTIONS
) -> dict[str, Any]:
    """Sends requests over all connections, and returns what happened."""
    left, memory = [requests], []
    visitors = [Visitor(k, port, size, seed, left) for k in range(connections)]
    tasks = [asyncio.ensure_future(visitor.run()) for visitor in visitors]
    began = time.perf_counter()
    with tqdm.tqdm(total=requests, unit=" requests") as bar:
        while not all(task.done() for task in tasks):
            if any(task.done() and task.exception() for task in tasks):
                break
            await asyncio.sleep(1.0)
            sent = requests - left[0]
            bar.update(sent - bar.n)
            memory.append((sent, memory_of(process)))
    for task in tasks:
        if task.done():
            task.result()
    seconds = time.perf_counter() - began
    client = await Client.connect(port)
    sessions = json.loads((await client.ask(request("GET", "/sessions")))[1])["sessions"]
    client.close()
    early = [found for sent, found in memory if sent <= requests / 10] or [memory[0][1]]
    late = [found for sent, found in memory if sent >= requests * 0.9] or [memory[-1][1]]
    statuses: collections.Counter[int] = sum((v.statuses for v in visitors), collections.Counter())
    return {
        "requests": requests - left[0],
        "seconds": round(seconds, 1),
        "requests_per_second": round((requests - left[0]) / seconds),
        "statuses": dict(sorted(statuses.items())),
        "compared_to_the_bit": sum(visitor.compared for visitor in visitors),
        "sessions_left": len(sessions),
        "megabytes_after_a_tenth": round(max(early) / 1e6),
        "megabytes_at_the_end": round(float(np.median(late)) / 1e6),
    }


def soak(port: int, process: int, size: int, requests: int, seed: int) -> int:
    """Sends requests, prints what happened, and returns the status of the process."""
    found = asyncio.run(visit(port, process, size, requests, seed))
    print(json.dumps(found))
    grown = found["megabytes_at_the_end"] > GROWTH * found["megabytes_after_a_tenth"]
    return int(bool(found["sessions_left"] or grown))
