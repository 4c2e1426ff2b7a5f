"""Starts the workers of a run on this machine, or prints their commands for several hosts.

    python -m tools.launch --workers=2 -- python -m experiments.language_model --logdir=runs/two
    python -m tools.launch --hosts=alpha:2222,beta:2222 -- python -m experiments.language_model

The first command runs --workers processes over loopback, each with its own TF_CONFIG, and shows
their output, each line with the worker's number. Signals go to all workers. If one dies, the others
are stopped: a strategy cannot go on without a worker. --restart=3 then starts all of them again, up
to three times; they go on from their last checkpoint. The second prints the command line of each
host.

The exit status is 0 if all workers end well, else that of the first one that did not. It is 75,
which says that the run is saved, only if no worker had to be stopped.
"""

import contextlib
import math
import os
import shlex
import signal
import socket
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
    "restart", 0, "Number of times that all workers start again if one dies.", lower_bound=0
)
THREADS = flags.DEFINE_integer(
    "threads",
    0,
    "Threads of each worker inside an operation; 0: the machine's cores, divided equally.",
    lower_bound=0,
)
GRACE = flags.DEFINE_float(
    "grace",
    60.0,
    "Seconds that the other workers have to end by themselves if one ends, and to finish writing "
    "a checkpoint; then they are stopped.",
    lower_bound=0.0,
)

UNFINISHED = 75  # a run that saved and ended in time: nothing went wrong
LAST_WORDS = 5.0  # seconds: a process that a worker leaves behind may hold its output open


# Names this launch, so that a restarted worker recognises its run, see tbptt/experiment/folder.py.
LAUNCH = f"{socket.gethostname()} {os.getpid()} {time.time()}"


def start(
    command: Sequence[str], addresses: Sequence[str], index: int
) -> tuple[subprocess.Popen, threading.Thread]:
    """Starts a worker, and a thread that shows its output with its number before each line."""
    threads = THREADS.value or max(1, (os.cpu_count() or 1) // len(addresses))
    more = {"TF_CONFIG": tf_config(addresses, index), "TF_NUM_INTRAOP_THREADS": str(threads)}
    more["TBPTT_LAUNCH"] = LAUNCH
    process = subprocess.Popen(
        command, env=os.environ | more, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    shown = threading.Thread(target=show, args=(process.stdout, index), daemon=True)
    shown.start()
    return process, shown


def show(lines: IO[bytes], index: int) -> None:
    """Writes lines to standard output, each with the worker's number, in one piece."""
    for line in lines:
        sys.stdout.write(f"[{index}] {line.decode('utf-8', 'replace').rstrip()}\n")
        sys.stdout.flush()


@contextlib.contextmanager
def forwarding(processes: Sequence[subprocess.Popen]) -> Iterator[list[int]]:
    """Forwards SIGTERM and SIGINT to all processes; yields the list of signals received."""
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


def stop(processes: Sequence[subprocess.Popen], grace: float) -> list[int]:
    """Ends processes: waits, terminates, waits, kills; returns which had to be told to end."""
    asked: list[int] = []
    for end in (None, subprocess.Popen.terminate, subprocess.Popen.kill):
        for index, process in enumerate(processes):
            if end is not None and process.poll() is None:
                end(process)
                asked.append(index)
        deadline = time.monotonic() + grace
        while time.monotonic() < deadline and any(p.poll() is None for p in processes):
            time.sleep(0.05)
    for process in processes:
        process.wait()
    return asked


def run_all(command: Sequence[str], workers: int, grace: float) -> tuple[int, bool]:
    """Runs the command in `workers` processes at once.

    Returns:
      0, or the status of the first worker that failed; and whether not to start again, because a
      signal or the run's time limit ended them.
    """
    addresses = free_addresses(workers)
    started = [start(command, addresses, index) for index in range(workers)]
    try:
        return watch([process for process, _ in started], grace)
    finally:
        for _, shown in started:  # the last words of a worker come after its end
            shown.join(LAST_WORDS)


def watch(processes: Sequence[subprocess.Popen], grace: float) -> tuple[int, bool]:
    """Waits until all workers have ended, and ends the others if one dies; see `run_all`."""
    with forwarding(processes) as received:
        while any(process.poll() is None for process in processes):
            time.sleep(0.05)
            dead = [index for index, process in enumerate(processes) if process.poll()]
            if dead:
                status = processes[dead[0]].returncode
                if not received and status != UNFINISHED:
                    logging.error("Worker %d ended with status %d.", dead[0], status)
                asked = stop(processes, grace)
                ended = bool(received) or status == UNFINISHED
                if asked and status == UNFINISHED:
                    status = processes[asked[0]].returncode or 1
                    logging.error(
                        "Worker %d had to be stopped, with status %d: what it was saving is lost. "
                        "Give it a longer --grace.",
                        asked[0],
                        status,
                    )
                return status, ended
    status = next((p.returncode for p in processes if p.returncode), 0)
    return status, bool(received) or status in (0, UNFINISHED)


def check_hosts(hosts: Sequence[str]) -> None:
    """Raises ValueError unless all hosts are different and each is `host:port`."""
    for host in hosts:
        name, _, port = host.rpartition(":")
        if not (name and port.isdecimal() and 0 < int(port) < 1 << 16):
            raise ValueError(f"--hosts has {host!r}, but must be like alpha:2222,beta:2222.")
    if len(set(hosts)) < len(hosts):
        raise ValueError(f"--hosts ({','.join(hosts)}) has a worker twice. Give each its own port.")


def main(argv: list[str]) -> None:
    """Starts the workers, watches them, and starts them again if one dies."""
    command = argv[1:]
    if not command:
        sys.exit("error: what is to be run? Write it after --, as: -- python -m experiments.music")
    if not math.isfinite(GRACE.value):
        sys.exit(f"error: --grace ({GRACE.value}) must be finite.")
    if HOSTS.value:
        try:
            check_hosts(HOSTS.value)
        except ValueError as error:
            sys.exit(f"error: {error}")
        for index, host in enumerate(HOSTS.value):
            print(
                f"{host}: TF_CONFIG={shlex.quote(tf_config(HOSTS.value, index))}",
                shlex.join(command),
            )
        return
    for left in range(RESTART.value, -1, -1):
        try:
            status, ended = run_all(command, WORKERS.value, GRACE.value)
        except OSError as error:  # of the first worker: none has been started
            sys.exit(f"error: {command[0]!r} cannot be run: {error.strerror}.")
        if ended or not left:
            break
        logging.info("All workers start again; %d more times if need be.", left - 1)
    sys.exit(status if status >= 0 else 128 - status)


if __name__ == "__main__":
    app.run(main)
