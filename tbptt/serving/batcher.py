"""`Batcher`: gathers requests of many threads into batches for a `Streamer`."""

import concurrent.futures
import queue
import threading
import time
from typing import Any

from tbptt import checks
from tbptt.serving.streamer import Streamer
from tbptt.types import Nest


class Batcher:
    """Runs requests that arrive within a few milliseconds together, in one thread.

    A request waits at most `wait_ms` for others, and never for one of its own session: two requests
    of a session run one after the other, in the order in which they came. A request that cannot be
    used fails alone.

    Example:
      >>> model = LanguageModel(5, 3, LSTM(3, 4, seed=make_seed(0)), seed=make_seed(1))
      >>> streamer = Streamer(model, jit_compile=False)
      >>> for name in ("ann", "bob"):
      ...     streamer.open(name)
      >>> with Batcher(streamer) as batcher:
      ...     futures = [batcher.submit(name, [1, 2]) for name in ("ann", "bob")]
      ...     [future.result().shape for future in futures]
      [(2, 5), (2, 5)]
    """

    def __init__(self, streamer: Streamer, *, wait_ms: float = 2.0, max_batch: int = 64) -> None:
        """Starts the thread; `close`, or the end of a `with` block, ends it.

        Args:
          streamer: runs the batches.
          wait_ms: milliseconds that the first request of a batch waits for others.
          max_batch: a batch of so many requests does not wait.

        Raises:
          ValueError: `wait_ms` is below 0 or `max_batch` below 1.
        """
        checks.check_at_least("wait_ms", wait_ms, 0.0)
        checks.check_at_least("max_batch", max_batch, 1)
        self._streamer, self._wait, self._most = streamer, wait_ms / 1e3, max_batch
        self._queue: queue.SimpleQueue = queue.SimpleQueue()
        self._later: list[tuple] = []  # requests whose session is in the batch before
        self._closed = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)
        self._thread.start()

    def submit(self, session: str, inputs: Nest) -> concurrent.futures.Future:
        """Returns a future of the outputs of `Streamer.feed`, or of the error it raises.

        Raises:
          RuntimeError: the batcher is closed.
        """
        future: concurrent.futures.Future = concurrent.futures.Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("The batcher is closed and takes no more requests.")
            self._queue.put((session, inputs, future))
        return future

    def close(self) -> None:
        """Runs what was submitted, and ends the thread."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
        self._thread.join()

    def __enter__(self) -> "Batcher":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _work(self) -> None:
        open_ = True
        while open_ or self._later:
            batch, open_ = self._gather(open_)
            if batch:
                self._run(batch)

    def _gather(self, open_: bool) -> tuple[list[tuple], bool]:
        """Returns the next requests, one a session, and whether more may come."""
        waiting, self._later = self._later, []
        batch: dict[str, tuple] = {}
        deadline: float | None = time.monotonic() if waiting else None

        def take(request: tuple) -> None:
            if request[0] in batch:
                self._later.append(request)
            elif request[2].set_running_or_notify_cancel():
                batch[request[0]] = request

        for request in waiting:
            take(request)
        while open_ and len(batch) < self._most:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                request = self._queue.get(timeout=left)
            except queue.Empty:
                break
            if request is None:
                open_ = False
                break
            take(request)
            if deadline is None:
                deadline = time.monotonic() + self._wait
        return list(batch.values()), open_

    def _run(self, batch: list[tuple]) -> None:
        """Runs a batch; if it cannot be run, each request alone, so that the right one fails."""
        try:
            outputs = self._streamer.feed_many({name: inputs for name, inputs, _ in batch})
        except Exception as error:
            if len(batch) == 1:
                batch[0][2].set_exception(error)
                return
            for request in batch:
                self._run([request])
            return
        for name, _, future in batch:
            future.set_result(outputs[name])
