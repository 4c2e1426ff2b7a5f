"""Starts the workers of a run on several processes of this machine, or says how on several hosts.

    python -m tools.launch --workers=2 -- python -m experiments.language_model --logdir=runs/two
    python -m tools.launch --hosts=alpha:2222,beta:2222 -- python -m experiments.language_model

The first runs the command so many times over loopback, each with its own TF_CONFIG, and shows what
they say behind their numbers. Signals go to all of them. If one dies, the others are stopped:
a strategy cannot go on without a worker. --restart=3 then starts all of them again, up to three
times; they go on from their last checkpoint. The second prints the command line of each host.

The exit status is 0 if all workers end well, else that of the first one that did not.
"""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import IO

from absl import app, flags, logging

from tools.cluster import free_addresses, tf_config

WORKERS = flags.DEFINE_integer("workers", 2, "Processes on this machine.", lower_bound=1)
HOSTS = flags.DEFINE_list("hosts", [], "host:port of each worker; prints commands, starts nothing.")
RESTART = flags.DEFINE_integer(
    "restart", 0, "How often all start again if one dies.", lower_bound=0
)
THREADS = flags.DEFINE_integer(
    "threads", 0, "Threads of each worker inside an operation; 0: the machine's, shared out."
)
GRACE = flags.DEFINE_float(
    "grace", 10.0, "Seconds for the others to end by themselves if one dies."
)

UNFINISHED = 75  # a run that saved and ended in time: nothing went wrong


def start(command: Sequence[str], addresses: Sequence[str], index: int) -> subprocess.Popen:
    """One worker; what it says is shown line by line behind its number."""
    threads = THREADS.value or max(1, (os.cpu_count() or 1) // len(addresses))
    more = {"TF_CONFIG": tf_config(addresses, index), "TF_NUM_INTRAOP_THREADS": str(threads)}
    process = subprocess.Popen(
        command, env=os.environ | more, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    threading.Thread(target=show, args=(process.stdout, index), daemon=True).start()
    return process


def show(lines: IO[bytes], index: int) -> None:
    """Line by line, each in one piece."""
    for line in lines:
        sys.stdout.write(f"[{index}] {line.decode('utf-8', 'replace').rstrip()}\n")
        sys.stdout.flush()


@contextlib.contextmanager
def forwarding(processes: Sequence[subprocess.Popen]) -> Iterator[list[int]]:
    """SIGTERM and SIGINT go to all of them; those received are in the list."""
    received: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        del frame
        received.append(number)
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    earlier = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def stop(processes: Sequence[subprocess.Popen], grace: float) -> None:
    """Waits so long, asks, waits as long again, kills."""
    for end in (lambda p: None, subprocess.Popen.terminate, subprocess.Popen.kill):
        for process in processes:
            if process.poll() is None:
                end(process)
        deadline = time.monotonic() + grace
        while time.monotonic() < deadline and any(p.poll() is None for p in processes):
            time.sleep(0.05)


def run_all(command: Sequence[str], workers: int, grace: float) -> tuple[int, bool]:
    """Runs the command so many times at once.

    Returns:
      0, or the status of the first that did not end well; whether a signal ended them.
    """
    addresses = free_addresses(workers)
    processes = [start(command, addresses, index) for index in range(workers)]
    with forwarding(processes) as received:
        while any(process.poll() is None for process in processes):
            time.sleep(0.05)
            dead = [index for index, process in enumerate(processes) if process.poll()]
            if dead:
                status = processes[dead[0]].returncode
                if not received and status != UNFINISHED:
                    logging.error("Worker %d ended with status %d.", dead[0], status)
                stop(processes, grace)
                return status, bool(received)
    return next((p.returncode for p in processes if p.returncode), 0), bool(received)


def main(argv: list[str]) -> None:
    """Starts, watches, starts again."""
    command = argv[1:]
    if not command:
        sys.exit("error: what is to be run? Write it after --, as: -- python -m experiments.music")
    if HOSTS.value:
        for index, host in enumerate(HOSTS.value):
            print(
                f"{host}: TF_CONFIG={shlex.quote(tf_config(HOSTS.value, index))}",
                shlex.join(command),
            )
        return
    for left in range(RESTART.value, -1, -1):
        status, by_signal = run_all(command, WORKERS.value, GRACE.value)
        if status in (0, UNFINISHED) or by_signal or not left:
            break
        logging.info("All workers start again; %d more times if need be.", left - 1)
    sys.exit(status if status >= 0 else 128 - status)


if __name__ == "__main__":
    app.run(main)
