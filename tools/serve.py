"""Serves a trained model over HTTP: sessions whose state goes on, JSON, and a page that writes.

    python -m tools.serve
    python -m tools.serve --logdir=runs/lm --port=8080 --sessions_folder=sessions
    curl -H 'Content-Type: application/json' -d '{"name": "ann"}' http://127.0.0.1:8000/sessions
    curl -H 'Content-Type: application/json' -d '{"text": "The ", "count": 50, "seed": 1}' \\
        http://127.0.0.1:8000/sessions/ann/generate

Without --logdir it takes the newest finished run below `runs`. The address that is printed shows
the page in a browser. SIGTERM or Ctrl-C finishes the requests that run; with --sessions_folder the
sessions are kept there and given back at the next start. Any --host but this machine's own needs a
token, in --token_file or the environment's TBPTT_TOKEN. The server needs an extra:
pip install -e '.[serve]'.
"""

import importlib.util
import os
import pathlib
import signal
import sys
from typing import Any

from absl import app, flags

from tools.runs import RUNS, newest_run

LOGDIR = flags.DEFINE_string("logdir", "", "The folder of a run; empty: the newest below runs.")
HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen at; others than this machine's "
                           "own need a token.")  # fmt: skip
PORT = flags.DEFINE_integer("port", 8000, "Port; 0: any that is free.", 0, 65535)
TOKEN_FILE = flags.DEFINE_string("token_file", None, "File with the token that clients must send; "
                                 "TBPTT_TOKEN in the environment is one too.")  # fmt: skip
HOSTS = flags.DEFINE_list("allowed_hosts", [], "Further names of this server in requests.")
FOLDER = flags.DEFINE_string("sessions_folder", None, "Keeps sessions while the server is stopped.")
ROWS = flags.DEFINE_integer("batch_rows", 32, "Sessions that run together: more are faster for "
                            "many clients, fewer for one.", 1, 4096)  # fmt: skip
JIT = flags.DEFINE_bool("jit_compile", True, "Whether XLA compiles the model.")
BODY = flags.DEFINE_integer("body_bytes", 1 << 20, "Largest body of a request.")
STEPS = flags.DEFINE_integer("steps", 4096, "Most steps or drawn tokens of a request.")
VALUES = flags.DEFINE_integer("values", 4_000_000, "Most numbers in an answer.")
SESSIONS = flags.DEFINE_integer("sessions", 1024, "Most sessions that are open.")
MARKS = flags.DEFINE_integer("marks", 64, "Most marks of a session.")
IDLE = flags.DEFINE_float("idle_seconds", 1800.0, "A session that is not used so long expires.")
WAITING = flags.DEFINE_integer("waiting", 512, "Most requests that run or wait.")
CONNECTIONS = flags.DEFINE_integer("connections", 1024, "Most connections that are open.")
RATE = flags.DEFINE_float("rate", None, "Most requests a second of one client's address; 0: any "
                          "number. 100 by default, but 0 for this machine alone.")  # fmt: skip
READ = flags.DEFINE_float("read_seconds", 10.0, "A request must arrive within so long.")
WRITE = flags.DEFINE_float("write_seconds", 30.0, "A client that does not read so long is cut off.")
GRACE = flags.DEFINE_float("grace_seconds", 5.0, "Generation goes on so long after SIGTERM.")

NEEDED = ("uvicorn", "httptools", "orjson")
TOKEN = "TBPTT_TOKEN"
OTHERS_RATE = 100.0


def read_token() -> str | None:
    """Returns the token of --token_file or the environment, or None.

    Raises:
      ValueError: both are given, or the file cannot be read.
    """
    given = os.environ.get(TOKEN)
    if TOKEN_FILE.value is None:
        return given or None
    if given:
        raise ValueError(f"There are --token_file and {TOKEN} in the environment; give one.")
    try:
        return pathlib.Path(TOKEN_FILE.value).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--token_file ({TOKEN_FILE.value!r}) cannot be read: {error}.") from None


def make_server(model: Any, preprocessing: dict[str, Any]) -> Any:
    """Makes the server that the flags describe.

    Raises:
      ValueError: it cannot be made; the message says why.
    """
    from tbptt.serving.http.limits import Limits
    from tbptt.serving.http.server import Server

    local = HOST.value in ("127.0.0.1", "localhost", "::1")
    rate = RATE.value if RATE.value is not None else 0.0 if local else OTHERS_RATE
    limits = Limits(
        body_bytes=BODY.value,
        steps=STEPS.value,
        values=VALUES.value,
        sessions=SESSIONS.value,
        marks=MARKS.value,
        idle_seconds=IDLE.value,
        waiting=WAITING.value,
        connections=CONNECTIONS.value,
        rate=rate,
        read_seconds=READ.value,
        write_seconds=WRITE.value,
        grace_seconds=GRACE.value,
    )
    return Server(
        model,
        preprocessing,
        host=HOST.value,
        port=PORT.value,
        token=read_token(),
        allowed_hosts=HOSTS.value,
        limits=limits,
        batch_rows=ROWS.value,
        sessions_folder=None if FOLDER.value is None else pathlib.Path(FOLDER.value),
        jit_compile=JIT.value,
    )


def main(argv: list[str]) -> None:
    """Loads a run and serves it until SIGTERM or SIGINT."""
    del argv
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(f"error: the server needs {', '.join(missing)}; run pip install -e '.[serve]'.")
    from tbptt.serving.load import load

    try:
        run = load(LOGDIR.value or newest_run(RUNS))
        server = make_server(run.model, run.preprocessing)
    except ValueError as error:
        sys.exit(f"error: {error}")
    if server.restored:
        print(f"{server.restored} sessions are open again.")
    print(f"Serving {run.folder} at {server.address} (Ctrl-C stops it)", flush=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # the server has handlers of its own while it runs
    server.run()
    if server.service.lost:
        sys.exit(f"error: {server.service.lost}")
    print("Stopped." if FOLDER.value is None else f"Stopped; sessions are in {FOLDER.value}.")


if __name__ == "__main__":
    app.run(main)
