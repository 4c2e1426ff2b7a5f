"""The command of the server: serves a run until SIGTERM, keeps sessions; what it refuses."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from tests.commands import FORKS, ROOT, _run, run_module
from tests.serving.http.conftest import VOCABULARY, make_model
from tests.tools.test_sample import make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with a run below `runs`."""
    folder = tmp_path_factory.mktemp("served")
    make_run(folder / "runs" / "mine", make_model(), {"vocabulary": VOCABULARY})
    return folder


def ask(port, method, path, content=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    body = None if content is None else json.dumps(content)
    connection.request(method, path, body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    found = json.loads(answer.read())
    connection.close()
    assert answer.status in (200, 201), found
    return found


class Serving:
    """`python -m tools.serve` in a process of its own, until it is told to stop."""

    def __init__(self, folder, *arguments):
        self.output = folder / "output.txt"
        self.output.unlink(missing_ok=True)
        given = ["--port=0", "--nojit_compile", "--batch_rows=2", *arguments]
        self.process = FORKS.Process(
            target=_run, args=("tools.serve", given, folder, self.output, "")
        )

    def __enter__(self):
        self.process.start()
        deadline = time.monotonic() + 60
        while not (found := re.search(r"127\.0\.0\.1:(\d+)", self.text())):
            assert time.monotonic() < deadline, self.text()
            assert self.process.is_alive(), self.text()
            time.sleep(0.05)
        return int(found[1])

    def text(self):
        return self.output.read_text() if self.output.exists() else ""

    def __exit__(self, *_):
        os.kill(self.process.pid, signal.SIGTERM)
        self.process.join(30)
        assert self.process.exitcode == 0, self.text()
        assert "Traceback" not in self.text()


def test_a_run_is_served_and_its_sessions_kept(run):
    """The newest run, until SIGTERM; then again, with the session that was open."""
    with Serving(run, "--sessions_folder=kept") as port:
        assert ask(port, "GET", "/model")["vocabulary_size"] == len(VOCABULARY)
        ask(port, "POST", "/sessions", {"name": "ann"})
        body = {"text": "abc", "count": 5, "seed": 1}
        steps = ask(port, "POST", "/sessions/ann/generate", body)["steps"]
    again = Serving(run, "--sessions_folder=kept")
    with again as port:
        assert ask(port, "GET", "/sessions/ann")["steps"] == steps == 8
        assert "1 sessions are open again" in again.text()
        taken = run_module("tools.serve", [f"--port={port}", "--nojit_compile"], run)
        assert taken.status == 1
        assert re.fullmatch(r"error: The address 127\.0\.0\.1:\d+ .*\n", taken.output)
    assert "sessions are in kept" in again.text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--logdir=nowhere"], "There is no folder 'nowhere'"),
        (["--host=0.0.0.0"], "a token is needed"),
        (["--token_file=missing"], r"--token_file \('missing'\) cannot be read"),
        (["--grace_seconds=inf"], r"grace_seconds \(inf\) must be finite"),
    ],
)
def test_refusals(run, arguments, message):
    ended = run_module("tools.serve", ["--port=0", "--nojit_compile", *arguments], run)
    assert ended.status == 1
    assert re.fullmatch(rf"error: .*{message}.*\n", ended.output), ended.output


def test_a_missing_package_is_named():
    """In a process in which uvicorn is not found."""
    code = (
        "import importlib.util as u, runpy, sys; find = u.find_spec\n"
        "u.find_spec = lambda name, *more: None if name == 'uvicorn' else find(name, *more)\n"
        "sys.argv = ['serve']; runpy.run_module('tools.serve', run_name='__main__')"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr == "error: the server needs uvicorn; run pip install -e '.[serve]'.\n"
