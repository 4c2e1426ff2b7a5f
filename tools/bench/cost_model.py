"""Models the cost of a training window on many devices, and compares it with measurements.

Every replica has the rows of the size (weak scaling). The time of a window is the sum of its
computation, of starting its parts one by one, and of the all-reduce of the gradients:

    compute  = product flops / (peak * share) + 2 * window_length * layers * step
    reduce   = sum over levels of 2 (m - 1) (latency + bytes / m / bandwidth),  bytes <- bytes / m
    window   = compute + dispatch + reduce

The reduction is a ring inside each level, as on a host, then one ring between hosts for each
member's share (Patarasuk & Yuan, 2009).
"""

import contextlib
import functools
import math
import random
import statistics
import sys
from collections.abc import Sequence
from typing import NamedTuple

import tqdm

from tools.bench.contestants import SIZES, Size
from tools.bench.workers import Worker
from tools.cluster import free_addresses, tf_config

# The same for all processes: one thread, and the allocator that `open_replicas` asks for.
ENVIRONMENT = {"TF_NUM_INTRAOP_THREADS": "1", "TF_CPU_ALLOCATOR_USE_BFC": "true"}


class Level(NamedTuple):
    """A group of members that exchange gradients over links of one kind.

    Attributes:
      members: the number of members in one ring.
      bandwidth: bytes per second out of a member, with the same into it.
      latency: seconds of one exchange.
    """

    members: int
    bandwidth: float
    latency: float


class Machine(NamedTuple):
    """The devices and links that the cost model describes.

    Attributes:
      flops: peak of a device, in floating-point operations per second.
      share: the share of the peak that thin matrix products reach.
      step: the shortest time of a step of a layer, forward or backward, in seconds.
      dispatch: seconds to start the parts of a window.
      levels: the levels of links, the innermost first.
    """

    flops: float
    share: float
    step: float
    dispatch: float
    levels: tuple[Level, ...]

    @property
    def replicas(self) -> int:
        """The number of replicas in all levels together."""
        return math.prod(level.members for level in self.levels)


# Peaks and links are the vendors' figures; share, step and dispatch are assumed, not measured:
# docs/scaling.md gives the reasons.
GPU = dict(flops=495e12, share=0.3, step=15e-6, dispatch=500e-6)  # H100 SXM, TF32
TPU = dict(flops=197e12, share=0.3, step=4e-6, dispatch=500e-6)  # v5e, bfloat16
NVLINK, NETWORK, TORUS = (450e9, 3e-6), (50e9, 10e-6), (100e9, 1e-6)
MACHINES = {
    "8 GPUs": Machine(**GPU, levels=(Level(8, *NVLINK),)),
    "32 hosts of 8 GPUs": Machine(**GPU, levels=(Level(8, *NVLINK), Level(32, *NETWORK))),
    "TPU pod, 16 x 16": Machine(**TPU, levels=(Level(16, *TORUS), Level(16, *TORUS))),
}


class Cost(NamedTuple):
    """The parts of a window's time, in seconds."""

    compute: float
    dispatch: float
    reduce: float

    @property
    def window(self) -> float:
        """The time of a whole window, in seconds."""
        return sum(self)

    @property
    def efficiency(self) -> float:
        """The efficiency of weak scaling: one device's time for a window over R replicas'."""
        return self.compute / self.window


def reduce_seconds(levels: Sequence[Level], size_bytes: float) -> float:
    """Returns the time of an all-reduce: a ring inside each level, innermost first.

    Example: 4 MB on two devices, over a link of 1 GB/s.
      >>> round(reduce_seconds([Level(2, 1e9, 1e-6)], 4e6), 6)
      0.004002
    """
    seconds = 0.0
    for members, bandwidth, latency in levels:
        seconds += 2 * (members - 1) * (latency + size_bytes / members / bandwidth)
        size_bytes /= members
    return seconds


def cost(size: Size, machine: Machine, wire_bytes: int = 4) -> Cost:
    """Returns the cost of a window in which every replica has the rows of `size`."""
    products = size.product_flops / (machine.flops * machine.share)
    steps = 2 * size.window_length * size.layers * machine.step
    reduce = reduce_seconds(machine.levels, wire_bytes * size.parameters)
    return Cost(products + steps, machine.dispatch, reduce)


def predictions(sizes: Sequence[str], machines: dict[str, Machine], wire_bytes: int) -> str:
    """Returns a table of the model's predictions."""
    lines = [
        "| size | machine | replicas | compute, ms | dispatch, ms | reduce, ms | efficiency "
        "| tokens/s |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name in sizes:
        for label, machine in machines.items():
            size = SIZES[name]
            told = cost(size, machine, wire_bytes)
            lines.append(
                f"| {name} | {label} | {machine.replicas} | {told.compute * 1e3:.2f} | "
                f"{told.dispatch * 1e3:.2f} | {told.reduce * 1e3:.3f} | {told.efficiency:.2f} | "
                f"{size.tokens * machine.replicas / told.window:,.0f} |"
            )
    return "\n".join(lines)


class Measured(NamedTuple):
    """The measured seconds a window, one number a round.

    Attributes:
      one: the one-device program, in a process by itself.
      apart: by P: the many-replica program in P separate processes that run at the same time.
      together: by P >= 2: the same program in P processes that train together.
      reduce, nothing: an all-reduce of all gradients over two processes, and of one number.
    """

    one: list[float]
    apart: dict[int, list[float]]
    together: dict[int, list[float]]
    reduce: list[float]
    nothing: list[float]


def measure(size: Size, most: int, rounds: int, windows: int, timeout: float) -> Measured:
    """Measures all programs in turn, in another order every round.

    Raises:
      WorkerError: a process cannot go on.
    """
    progress = functools.partial(tqdm.tqdm, disable=not sys.stderr.isatty())
    with contextlib.ExitStack() as stack:

        def group(name: str, count: int) -> list[Worker]:
            """Starts `count` workers, connected to each other if they train together."""
            addresses = free_addresses(count)
            together = name in ("worker", "reduce", "reduce-nothing")
            workers = []
            for index in range(count):
                more = {"TF_CONFIG": tf_config(addresses, index)} if together else {}
                workers.append(Worker(name, size, timeout=timeout, environment=ENVIRONMENT | more))
                stack.callback(workers[-1].close)
            for worker in workers:
                worker.answer()
            return workers

        found = Measured([], {}, {}, [], [])
        wanted = [("ours-auto", 1, found.one), ("reduce", 2, found.reduce)]
        wanted += [("reduce-nothing", 2, found.nothing)]
        counts = range(2, most + 1)
        wanted += [("worker", n, found.together.setdefault(n, [])) for n in counts]
        turns = [
            (group(name, count), times) for name, count, times in progress(wanted, "processes")
        ]
        alone = group("alone", most)
        turns += [(alone[:n], found.apart.setdefault(n, [])) for n in range(1, most + 1)]
        for _ in progress(range(rounds + 1), "round"):
            for workers, times in random.sample(turns, len(turns)):
                for worker in workers:
                    worker.ask(windows)
                times.append(max(worker.answer()["seconds"] for worker in workers) / windows)
    for _, times in turns:
        del times[0]  # the first round has start-up costs
    return found


def link(found: Measured, size_bytes: int) -> tuple[float, float]:
    """Returns bandwidth and latency between two processes, computed from the all-reduces alone."""
    nothing, reduce = statistics.median(found.nothing), statistics.median(found.reduce)
    return size_bytes / (reduce - nothing), nothing / 2


def comparison(found: Measured, size_bytes: int, cores: int) -> str:
    """Returns a table of model and measurement, with the shares of the time."""
    bandwidth, latency = link(found, size_bytes)
    one, alone = statistics.median(found.one), statistics.median(found.apart[1])
    median = statistics.median
    lines = [
        f"One process, one thread: {one * 1e3:.1f} ms a window; by the program of many replicas "
        f"{alone / one:.3f} of it.",
        f"A sum over two processes: {latency * 2e3:.2f} ms, and {bandwidth / 1e9:.2f} GB/s.",
        "",
        "| processes | ms a window | model | model / measured | efficiency | apart, ms "
        "| reduce's share |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for count, times in found.together.items():
        crowded = max(1.0, count / cores)
        reduce = reduce_seconds([Level(count, bandwidth, latency)], size_bytes)
        model = crowded * Cost(one, alone - one, reduce).window
        efficiency = median(a / b for a, b in zip(found.one, times, strict=True))
        share = median(1 - a / b for a, b in zip(found.apart[count], times, strict=True))
        lines.append(
            f"| {count} | {median(times) * 1e3:.1f} | {model * 1e3:.1f} | "
            f"{model / median(times):.2f} | {efficiency:.2f} | "
            f"{median(found.apart[count]) * 1e3:.1f} | {share:.1%} |"
        )
    return "\n".join(lines)


def own_machine(levels: Sequence[str], flops: float) -> Machine:
    """Returns the machine that the flags describe.

    Raises:
      ValueError: a level is not three positive numbers.
    """
    made = []
    for level in levels:
        try:
            members, gigabytes, microseconds = map(float, level.split(":"))
        except ValueError:
            members = gigabytes = microseconds = 0.0
        if members < 1 or members % 1 or gigabytes <= 0 or microseconds < 0:
            raise ValueError(f"--levels ({level!r}) must be members:GB/s:microseconds, as 8:450:3.")
        made.append(Level(int(members), gigabytes * 1e9, microseconds * 1e-6))
    return Machine(**GPU | dict(flops=flops), levels=tuple(made))
