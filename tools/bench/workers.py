"""Runs one contestant in a process of its own, which trains on request and waits otherwise.

    python -m tools.bench.workers NAME '{"rows": 64, ...}'

The process answers in JSON, a line each: once when its first window is trained, and once for
every number of windows that it reads. It ends when its input does, so it does not outlive the
process that started it. `Worker` starts such a process and talks to it. The process that starts it
imports no TensorFlow, because a child's peak memory begins at its parent's.
"""

import dataclasses
import importlib
import json
import os
import resource
import select
import subprocess
import sys
import tempfile
import textwrap
import time
import traceback
from collections.abc import Mapping
from typing import Any

from tools.bench.ceilings import CEILINGS
from tools.bench.contestants import CONTESTANTS, EXTRAS, Size
from tools.bench.together import TOGETHER


class WorkerError(RuntimeError):
    """Raised when a contestant cannot go on; the message says why, in one short line."""


def reason(error: Exception) -> str:
    """Returns the reason why a contestant cannot run, in one short line."""
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed: pip install -e '.[bench]'"
    return one_line(f"{type(error).__name__}: {error}")


def one_line(text: str) -> str:
    """Returns `text` without line ends, shortened if it is long."""
    return textwrap.shorten(text.replace("|", "/"), 80, placeholder=" ...")


class Worker:
    """Starts a process that trains one contestant, and talks to it.

    Args:
      name: the name of the contestant.
      size: the sizes of model and windows.
      timeout: the longest time for an answer, in seconds.
      environment: environment variables of the process beside those of this one.
    """

    def __init__(
        self, name: str, size: Size, *, timeout: float, environment: Mapping[str, str] | None = None
    ) -> None:
        self._timeout = timeout
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the process)
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tools.bench.workers",
                name,
                json.dumps(dataclasses.asdict(size)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            bufsize=0,
            env=os.environ | dict(environment or {}),
            start_new_session=True,  # Ctrl-C reaches only the parent, which closes this process
        )

    def turn(self, windows: int) -> dict[str, Any]:
        """Trains on `windows` windows; returns `seconds`, `loss` and `peak_mb`."""
        self.ask(windows)
        return self.answer()

    def ask(self, windows: int) -> None:
        """Tells the process to train on `windows` windows; `answer` waits for it."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{windows}\n".encode())
        except BrokenPipeError:
            raise WorkerError(self._last_words()) from None

    def close(self) -> None:
        """Kills the process, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            assert pipe is not None
            pipe.close()

    def answer(self) -> dict[str, Any]:
        """Waits for the next answer of the process and returns it.

        The first answer, after the first window, has `first_step_s` and `loss`; the answer to each
        `ask` has `seconds`, `loss` and `peak_mb`.
        """
        pipe = self._process.stdout
        assert pipe is not None
        if not select.select([pipe], [], [], self._timeout)[0]:
            raise WorkerError(f"no answer in {self._timeout:g} seconds")
        line = pipe.readline()
        if not line:
            raise WorkerError(self._last_words())
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def _last_words(self) -> str:
        status = self._process.wait(self._timeout)
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return one_line(f"died with status {status}: {lines[-1] if lines else 'no message'}")


def peak_mb() -> float:
    """Returns the largest resident memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def serve(name: str, size: Size) -> None:
    """Builds a contestant, and trains the number of windows that each line of the input gives."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # text that a package prints must not be read as an answer

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=answers, flush=True)

    try:
        contestant = {**CONTESTANTS, **EXTRAS, **CEILINGS, **TOGETHER}[name]
        for package in contestant.packages:
            importlib.import_module(package)
        before, began = peak_mb(), time.perf_counter()
        run = contestant.build(size)
        loss = run(1)
        answer(first_step_s=time.perf_counter() - began, loss=loss)
        for line in sys.stdin:
            began = time.perf_counter()
            loss = run(int(line))
            seconds = time.perf_counter() - began
            answer(seconds=seconds, loss=loss, peak_mb=peak_mb() - before)
    except Exception as error:
        traceback.print_exc()
        answer(error=reason(error))
        sys.exit(1)


if __name__ == "__main__":
    serve(sys.argv[1], Size(**json.loads(sys.argv[2])))
