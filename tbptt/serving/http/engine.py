"""`Engine`: one thread that runs the model in rounds, in each of them many sessions together.

While a round runs, requests gather; the next round takes those that wait, so that nobody waits for
a timer. A round takes a session once, and at most as many as the streamer runs in one batch: what
the event loop does for the others meanwhile costs no time.
"""

import asyncio
import collections
import concurrent.futures
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tbptt.serving.http.drawing import Drawing, Request
from tbptt.serving.http.metrics import Metrics
from tbptt.serving.http.sessions import Place, Session
from tbptt.serving.sampling import Sampling
from tbptt.serving.streamer import Streamer
from tbptt.types import Nest


class _Job:
    """Work that waits for a round, and the future of its result."""

    def __init__(self) -> None:
        self.future: asyncio.Future = asyncio.get_running_loop().create_future()
        self.result: Any = None
        self.error: Exception | None = None

    def resolve(self) -> None:
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
        tokens = self.result
        return len(tokens) == len(self.numbers) or (bool(tokens) and tokens[-1] in self.stop)

    def request(self) -> Request:
        place = self.session.place
        assert place.logits is not None
        assert place.seen is not None
        return Request(place.logits, place.seen, self.numbers[len(self.result)], self.sampling)


class Engine:
    """Feeds sessions and draws their tokens, in rounds."""

    def __init__(self, streamer: Streamer, rows: int, metrics: Metrics, *, language: bool) -> None:
        """Creates an engine; `start` starts it.

        Args:
          streamer: runs the model.
          rows: the most sessions of a round, as many as a batch of the streamer has.
          metrics: counts steps, tokens and rounds.
          language: whether outputs are logits `[N, V]` of the token after each step.
        """
        self._streamer, self._rows, self._metrics = streamer, rows, metrics
        self._language, self._drawing = language, Drawing()
        self._calls: list[_Call] = []
        self._jobs: collections.deque[_Feed | _Write] = collections.deque()
        self._wake = asyncio.Event()
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._task: asyncio.Task | None = None
        self.loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Begins to run rounds, in the running event loop."""
        self.loop = asyncio.get_running_loop()
        self._task = self.loop.create_task(self._work())

    async def stop(self) -> None:
        """Ends the thread; whatever still waits is cancelled."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._thread.shutdown(wait=True)

    async def call(self, function: Callable[[], Any]) -> Any:
        """Runs a function between two rounds and returns its result."""
        job = _Call(function)
        self._calls.append(job)
        self._wake.set()
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
        return await job.future

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._calls or self._jobs:
                calls, self._calls = self._calls, []
                jobs = [self._jobs.popleft() for _ in range(min(len(self._jobs), self._rows))]
                await loop.run_in_executor(self._thread, self._round, calls, jobs)
                for job in (*calls, *jobs):
                    job.resolve()
                await asyncio.sleep(0)  # whoever waited for this round may join the next one

    def _round(self, calls: list[_Call], jobs: list[_Feed | _Write]) -> None:
        """Runs calls, then the first step of all jobs, then the further tokens to draw."""
        for call in calls:
            call.run()
        if jobs:
            self._metrics.rounds.add(len(jobs))
        while jobs:
            writes = [job for job in jobs if isinstance(job, _Write)]
            try:
                tokens = self._drawing([job.request() for job in writes]) if writes else []
            except Exception as error:
                for job in writes:
                    job.error = error
                jobs, writes, tokens = [job for job in jobs if job not in writes], [], []
            for job, token in zip(writes, tokens, strict=True):
                job.result.append(token)
            self._metrics.tokens += len(tokens)
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
            steps = len(tf.nest.flatten(chunks[name])[0])
            self._metrics.steps += steps
            if self._language:
                session.read(chunks[name], outputs[name][-1])
            else:
                session.place = Place(session.place.steps + steps)


def _chunk(job: _Feed | _Write) -> Nest:
    return job.chunk if isinstance(job, _Feed) else np.array(job.result[-1:], np.int32)
