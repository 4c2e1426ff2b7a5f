"""Measures the HTTP server: latency and tokens a second, beside the streamer and a peer.

    python -m tools.bench.server
    python -m tools.bench.server --requests=1000000

The model is that of `tools.bench.streaming`: an LSTM over bytes, 512 units, random weights. A
client in this process sends requests over 1 to 256 connections, each with a session of its own;
the server runs in another process. Beside it stand the streamer alone, fed with the same chunks
in this process, and a minimal PyTorch and FastAPI server without batches, in `--peer_python`, an
interpreter that has both; it is left out where they are missing.

With --requests, random good and bad requests are sent instead, and every answer is checked; see
`tools.bench.server_soak`.
"""

import asyncio
import contextlib
import json
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
from absl import app, flags

from tools.bench import http_client, server_soak
from tools.bench.streaming import HIDDEN, SYMBOLS, build

CONNECTIONS = flags.DEFINE_list("connections", ["1", "16", "64", "256"], "Numbers of connections.")
STEPS = flags.DEFINE_list("chunks", ["1", "16"], "Numbers of steps of a request.")
COUNT = flags.DEFINE_integer("count", 64, "Tokens that a request draws; 0: none are drawn.", 0)
SECONDS = flags.DEFINE_float("seconds", 3.0, "Seconds of each measurement.")
ROWS = flags.DEFINE_integer("batch_rows", 32, "Sessions of a batch; see tools.serve.", 1)
PEER = flags.DEFINE_string("peer_python", sys.executable, "Interpreter that has torch and fastapi.")
REQUESTS = flags.DEFINE_integer("requests", 0, "Random requests to send instead.", 0)
SEED = flags.DEFINE_integer("seed", 0, "Seed of the random requests.")
ROLE = flags.DEFINE_enum("role", "client", ["client", "server"], "Used by this script itself.")

ROOT = pathlib.Path(__file__).parents[2]


def serve() -> None:
    """Serves the model until it is told to stop, and prints the port."""
    from tbptt.serving.http.limits import Limits
    from tbptt.serving.http.server import Server

    server = Server(
        build(HIDDEN.value), port=0, batch_rows=ROWS.value, limits=Limits(idle_seconds=3600.0)
    )
    print(server.address.rpartition(":")[2], flush=True)
    server.run()


@contextlib.contextmanager
def running(command: list[str]) -> Iterator[tuple[int, int] | None]:
    """Runs a server in a block, and yields its port and its process; None if it does not start."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    try:
        line = process.stdout.readline().strip()
        yield (int(line), process.pid) if line else None
    finally:
        process.terminate()
        process.wait()


def ours() -> list[str]:
    """Returns the command of this server."""
    flags_ = [f"--units={HIDDEN.value}", f"--batch_rows={ROWS.value}"]
    return [sys.executable, "-m", "tools.bench.server", "--role=server", *flags_]


def peer() -> list[str]:
    """Returns the command of the peer."""
    return [PEER.value, "tools/bench/server_peer.py", str(HIDDEN.value)]


async def open_sessions(port: int, names: list[str]) -> None:
    """Opens sessions and feeds each a step."""
    client = await http_client.Client.connect(port)
    for name in names:
        body = json.dumps({"name": name}).encode()
        await client.ask(http_client.request("POST", "/sessions", body))
        await client.ask(http_client.request("POST", f"/sessions/{name}/feed", b'{"inputs": [1]}'))
    client.close()


def measure_server(port: int, work: str, steps: int, connections: int) -> tuple[float, ...]:
    """Returns steps a second, and p50 and p99 of the latency in seconds."""
    names = [f"s{k}" for k in range(connections)]
    requests = [http_client.requests_of(name, work, steps, SYMBOLS) for name in names]
    asyncio.run(http_client.load(port, requests, min(1.0, SECONDS.value)))
    taken, seconds = asyncio.run(http_client.load(port, requests, SECONDS.value))
    quantiles = np.quantile(taken, [0.5, 0.99])
    return len(taken) * steps / seconds, *quantiles.tolist()


def measure_streamer(steps: int, sessions: int) -> float:
    """Returns steps a second of sessions that are fed in this process, without a server."""
    from tbptt.serving.streamer import Streamer

    streamer = Streamer(build(HIDDEN.value), batch_sizes=(1, 8, 64))
    names = [f"s{k}" for k in range(sessions)]
    for name in names:
        streamer.open(name)
    chunk = {name: np.arange(steps) % SYMBOLS for name in names}
    taken: list[float] = []
    end = time.perf_counter() + SECONDS.value
    while time.perf_counter() < end or len(taken) < 3:
        began = time.perf_counter()
        streamer.feed_many(chunk)
        taken.append(time.perf_counter() - began)
    return sessions * steps / statistics.median(taken[1:])


def compare() -> None:
    """Prints a table of all numbers of connections."""
    if sys.modules.get("uvloop") is None:
        with contextlib.suppress(ImportError):
            import uvloop

            asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    connections = [int(number) for number in CONNECTIONS.value]
    works = [("feed", int(steps)) for steps in STEPS.value]
    works += [("generate", COUNT.value)] * (COUNT.value > 0)
    print("| request | connections | p50 ms | p99 ms | steps/s | streamer | share | peer | ratio |")
    print("|---|---|---|---|---|---|---|---|---|")
    with running(ours()) as own, running(peer()) as other:
        assert own is not None
        for port, _ in filter(None, (own, other)):
            asyncio.run(open_sessions(port, [f"s{k}" for k in range(max(connections))]))
        for work, steps in works:
            for number in connections:
                alone = measure_streamer(1 if work == "generate" else steps, number)
                found, p50, p99 = measure_server(own[0], work, steps, number)
                peers = measure_server(other[0], work, steps, number)[0] if other else np.nan
                print(
                    f"| {work} {steps} | {number} | {p50 * 1e3:.1f} | {p99 * 1e3:.1f} | "
                    f"{found:,.0f} | {alone:,.0f} | {found / alone:.2f} | {peers:,.0f} | "
                    f"{found / peers:.1f} |",
                    flush=True,
                )


def main(argv: list[str]) -> None:
    """Measures, or sends random requests."""
    del argv
    if ROLE.value == "server":
        serve()
    elif REQUESTS.value:
        with running(ours()) as own:
            assert own is not None
            sys.exit(server_soak.soak(*own, SYMBOLS, REQUESTS.value, SEED.value))
    else:
        compare()


if __name__ == "__main__":
    app.run(main)
