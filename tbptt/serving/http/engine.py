"""`Engine`: runs the model in rounds, in each of them many sessions together.

While a round runs, requests gather; the next round takes those that wait. A session that is alone
never waits. Where there are several, a round begins a little later if sessions of the last two
rounds are not back yet: otherwise they would split into two halves that take turns for ever. A
round takes a session once, and at most as many as the streamer runs in one batch. If that many
wait, a second round overlaps with the first: one runs the model while the other one draws tokens,
and the event loop serves the rest.
"""

import asyncio
import collections
import concurrent.futures
import contextlib
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from tbptt.serving.http.drawing import Drawing, DrawRequest
from tbptt.serving.http.metrics import Metrics
from tbptt.serving.http.sessions import Place, Session, leaves_of
from tbptt.serving.sampling import Sampling
from tbptt.serving.streamer import Streamer
from tbptt.types import Nest

WAIT = 0.3  # of the time that the last round took: so long for sessions that may come back
SHORTEST_WAIT, LONGEST_WAIT = 0.0005, 0.003  # seconds


class _Job:
    """Work that waits for a round, and the future of its result."""

    def __init__(self) -> None:
        self.future: asyncio.Future = asyncio.get_running_loop().create_future()
        self.result: Any = None
        self.error: Exception | None = None
        self.steps = 0  # that were read

    def resolve(self) -> None:
        """Hands result or error to whoever waits for the job."""
        if self.future.done():  # cancelled
            return
        if self.error is None:
            self.future.set_result(self.result)
        else:
            self.future.set_exception(self.error)


class _Call(_Job):
    def __init__(self, function: Callable[[], Any]) -> None:
        super().__init__()
        self.function = function

    def run(self) -> None:
        """Calls the function, and keeps its result or its error."""
        try:
            self.result = self.function()
        except Exception as error:
            self.error = error


class _Feed(_Job):
    def __init__(self, session: Session, chunk: Nest) -> None:
        super().__init__()
        self.session, self.chunk = session, chunk


class _Write(_Job):
    """Tokens to draw in one round, `numbers` being uniform, one a token."""

    def __init__(
        self, session: Session, numbers: np.ndarray, sampling: Sampling, stop: frozenset[int]
    ) -> None:
        super().__init__()
        self.session, self.numbers, self.sampling, self.stop = session, numbers, sampling, stop
        self.result: list[int] = []

    @property
    def ended(self) -> bool:
        """Whether all tokens are drawn, or a stop token was."""
        tokens = self.result
        return len(tokens) == len(self.numbers) or (bool(tokens) and tokens[-1] in self.stop)

    def request(self) -> DrawRequest:
        """Asks for the next token, from where the session is."""
        place = self.session.place
        assert place.logits is not None
        assert place.seen is not None
        return DrawRequest(place.logits, place.seen, self.numbers[len(self.result)], self.sampling)


class Engine:
    """Feeds sessions and draws their tokens, in rounds."""

    def __init__(
        self, streamer: Streamer, rows: int, metrics: Metrics, drawing: Drawing | None
    ) -> None:
        """Creates an engine; `start` starts it.

        Args:
          streamer: runs the model.
          rows: the most sessions of a round, as many as a batch of the streamer has.
          metrics: counts steps, tokens and rounds.
          drawing: draws the tokens of a language model, whose outputs are logits `[N, V]` of the
            token after each step; None: of any other model.
        """
        self._streamer, self._rows, self._metrics = streamer, rows, metrics
        self._drawing = drawing
        self._calls: list[_Call] = []
        self._jobs: collections.deque[_Feed | _Write] = collections.deque()
        self._wake, self._wake_second = asyncio.Event(), asyncio.Event()
        self._threads = concurrent.futures.ThreadPoolExecutor(2, thread_name_prefix="engine")
        self._tasks: list[asyncio.Task] = []
        self._calling = threading.Lock()
        self._recent: collections.deque[set[str]] = collections.deque([set()], maxlen=2)
        self._seconds = 0.0  # that the last round took
        self._expected, self._gathered = 0, asyncio.Event()
        self.loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Begins to run rounds, in the running event loop."""
        self.loop = asyncio.get_running_loop()
        works = (self._work(self._wake, 1), self._work(self._wake_second, self._rows))
        self._tasks = [self.loop.create_task(work) for work in works]

    async def stop(self) -> None:
        """Ends the rounds that run; whatever still waits gets no answer."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._threads.shutdown(wait=True)

    async def call(self, function: Callable[[], Any]) -> Any:
        """Runs a function in an engine's thread, one at a time, and returns its result."""
        job = _Call(function)
        self._calls.append(job)
        self._wake.set()
        self._gathered.set()
        return await job.future

    async def feed(self, session: Session, chunk: Nest) -> Nest:
        """Reads steps `[N, ...]` of a session in one round and returns the outputs `[N, ...]`."""
        return await self._add(_Feed(session, chunk))

    async def write(
        self, session: Session, numbers: np.ndarray, sampling: Sampling, stop: frozenset[int]
    ) -> list[int]:
        """Draws tokens in one round, reads them, and returns them.

        Args:
          session: has read something.
          numbers: `[N]` uniform numbers, one for each token.
          sampling: how tokens are drawn.
          stop: the tokens after which nothing more is drawn.
        """
        return await self._add(_Write(session, numbers, sampling, stop))

    async def _add(self, job: _Feed | _Write) -> Any:
        self._jobs.append(job)
        self._wake.set()
        if len(self._jobs) >= self._rows:
            self._wake_second.set()
        if len(self._jobs) >= self._expected > 0:
            self._gathered.set()
        return await job.future

    async def _work(self, wake: asyncio.Event, least: int) -> None:
        """Runs rounds whenever `least` jobs wait, or a call."""
        loop = asyncio.get_running_loop()
        while True:
            await wake.wait()
            while self._calls or len(self._jobs) >= least:
                if len(self._jobs) < self._rows and not self._calls:
                    await self._gather()
                if not self._calls and not self._jobs:  # the other round has taken them
                    break
                calls, self._calls = self._calls, []
                jobs = [self._jobs.popleft() for _ in range(min(len(self._jobs), self._rows))]
                self._recent.append({job.session.name for job in jobs})
                began = loop.time()
                try:
                    await loop.run_in_executor(self._threads, self._round, calls, jobs)
                except Exception as error:  # so that nobody waits for ever
                    for job in jobs:
                        job.error = error
                self._seconds = loop.time() - began
                for waiting in (*calls, *jobs):
                    waiting.resolve()
                self._count(jobs)
                await asyncio.sleep(0)  # whoever waited for this round may join the next one
            wake.clear()

    async def _gather(self) -> None:
        """Waits a little for sessions of the last two rounds that are not back yet."""
        self._expected = min(self._rows, len(set().union(*self._recent)))
        seconds = min(LONGEST_WAIT, WAIT * self._seconds)
        if seconds >= SHORTEST_WAIT and len(self._jobs) < self._expected:
            self._gathered.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._gathered.wait(), max(seconds, 0.001))
        self._expected = 0

    def _count(self, jobs: list[_Feed | _Write]) -> None:
        """Counts a round in the metrics."""
        metrics = self._metrics
        if jobs:
            metrics.rounds.add(len(jobs))
        for job in jobs:
            metrics.steps += job.steps
            metrics.tokens += job.steps if isinstance(job, _Write) else 0

    def _round(self, calls: list[_Call], jobs: list[_Feed | _Write]) -> None:
        """Runs calls, then the first step of all jobs, then the further tokens to draw."""
        with self._calling:
            for call in calls:
                call.run()
        while jobs:
            writes = [job for job in jobs if isinstance(job, _Write)]
            try:
                draw = self._drawing
                tokens = draw([job.request() for job in writes]) if draw and writes else []
            except Exception as error:
                for job in writes:
                    job.error = error
                jobs, writes, tokens = [job for job in jobs if job not in writes], [], []
            for job, token in zip(writes, tokens, strict=True):
                job.result.append(token)
            self._read(jobs)
            jobs = [job for job in writes if job.error is None and not job.ended]

    def _read(self, jobs: list[_Feed | _Write]) -> None:
        """Feeds the chunks of jobs, or the tokens just drawn; each alone if that fails."""
        chunks = {job.session.name: _chunk(job) for job in jobs}
        try:
            outputs = self._streamer.feed_many(chunks)
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].error = error
                return
            for job in jobs:
                self._read([job])
            return
        for job in jobs:
            name, session = job.session.name, job.session
            if isinstance(job, _Feed):
                job.result = outputs[name]
            steps = len(leaves_of(chunks[name])[0])
            job.steps += steps
            if self._drawing:
                session.read(chunks[name], outputs[name][-1])
            else:
                session.place = Place(session.place.steps + steps)


def _chunk(job: _Feed | _Write) -> Nest:
    return job.chunk if isinstance(job, _Feed) else np.array(job.result[-1:], np.int32)
