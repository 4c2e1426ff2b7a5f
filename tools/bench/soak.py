"""Trains a small model for long, as a real run would, and checks that no resource grows.

    python -m tools.bench.soak --windows=100000

One process trains in calls of 100 windows, prefetched from a memory map, with an evaluation now and
then and TensorBoard summaries after every call. The table shows tenths of the run; speed is
compared with a fixed matrix product, the yardstick, timed after every call. The exit status is 1
if the last tenth holds more memory than the second or is slower, if the program was traced again,
or if the number of threads or open files grew; the first tenth, which compiles, is left out.
"""

import dataclasses
import gc
import os
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import app, flags

import tbptt
from tbptt.summaries import tags
from tools.bench import small_model

WINDOWS = flags.DEFINE_integer("windows", 100_000, "Windows to train.", lower_bound=500)

TENTHS = 10
ROWS, WINDOW_LENGTH, EMBEDDING, HIDDEN = 8, 16, 16, 32
TRAIN_TOKENS, VALID_TOKENS = 500_000, 5_000
WINDOWS_PER_CALL = 100
MORE_MB, MORE_MEMORY, SLOWER = 10.0, 0.02, 0.10  # allowed: whichever of the first two is more


@dataclasses.dataclass(frozen=True)
class Sample:
    """The measurements after one call.

    Attributes:
      windows: the number of windows in the call.
      seconds: the time that it took, feeding included.
      yardstick: seconds that a fixed matrix product took right after it.
      resident_mb: resident memory of the process.
      traces: the number of traces of training and evaluation.
      objects: the number of Python's objects, counted now and then; else 0.
      threads, files: the numbers of threads and open files of the process.
    """

    windows: int
    seconds: float
    yardstick: float
    resident_mb: float
    traces: int
    objects: int
    threads: int
    files: int


@dataclasses.dataclass(frozen=True)
class Tenth:
    """A tenth of the run: medians of its calls, and the maximum of traces and objects.

    Attributes:
      products: a window's time in units of the yardstick's, so that slow phases of the machine do
        not matter.
    """

    ms: float
    products: float
    resident_mb: float
    traces: int
    objects: int
    threads: int
    files: int


class Sampler:
    """A callback that takes a `Sample` after every call."""

    def __init__(self, trainer: tbptt.Trainer, evaluator: tbptt.Evaluator) -> None:
        self.samples: list[Sample] = []
        self._trainer = trainer
        self._evaluator = evaluator
        self._tenth = -1
        self._matrix = np.random.default_rng(0).standard_normal([384, 384], np.float32)

    def __call__(self, report: tbptt.Report) -> None:
        """Records the memory, threads and files of this process after a call."""
        tenth = TENTHS * report.step // report.last_step
        counts, self._tenth = tenth != self._tenth, tenth  # a walk over all objects is slow
        self.samples.append(
            Sample(
                windows=report.metrics.windows,
                seconds=report.seconds,
                yardstick=self._yardstick(),
                resident_mb=resident_mb(),
                traces=self._trainer.traces + self._evaluator.traces,
                objects=len(gc.get_objects()) if counts else 0,
                threads=len(os.listdir("/proc/self/task")),
                files=len(os.listdir("/proc/self/fd")),
            )
        )

    def _yardstick(self) -> float:
        """Times a fixed piece of work, to measure the machine's current speed."""
        began = time.perf_counter()
        for _ in range(5):
            self._matrix @ self._matrix
        return time.perf_counter() - began


def resident_mb() -> float:
    """Returns the megabytes of this process that are resident now."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def train(windows: int, folder: pathlib.Path, windows_per_call: int) -> list[Sample]:
    """Trains and returns the samples; evaluates every 20 calls, or more often in a short run."""
    for name, count in (("train", TRAIN_TOKENS), ("valid", VALID_TOKENS)):
        small_model.write_tokens(folder / f"{name}.bin", count)
    shape: dict[str, Any] = dict(rows=ROWS, window_length=WINDOW_LENGTH)
    stream = small_model.open_stream(folder / "train.bin", **shape)
    valid = small_model.open_stream(folder / "valid.bin", **shape, tail="pad")
    trainer = small_model.build(embedding=EMBEDDING, hidden=HIDDEN)
    evaluator = tbptt.Evaluator(trainer.model, valid)
    keep_best = tbptt.KeepBest(trainer.model)
    writer = tbptt.SummaryWriter(folder / "run")

    def write(report: tbptt.Report) -> None:
        speed = report.metrics.windows * ROWS * WINDOW_LENGTH / report.seconds
        scalars = {
            tags.LOSS_TRAIN: report.metrics.loss,
            tags.GRAD_NORM_MEAN: report.metrics.grad_norm_mean,
            tags.TOKENS_PER_SECOND: speed,
        }
        writer.scalars(report.step, scalars)

    def evaluate(report: tbptt.Report) -> None:
        loss = evaluator().loss
        writer.scalars(report.step, {tags.LOSS_VALID: loss})
        writer.histograms(report.step, tags.PARAMETERS, tbptt.named_parameters(trainer.model))
        keep_best.offer(loss, report.step)
        writer.flush()

    calls = min(20, max(1, windows // windows_per_call // 20))
    sampler = Sampler(trainer, evaluator)
    tbptt.train(
        trainer,
        tbptt.PrefetchFeed(stream, windows_per_call),
        tbptt.RunState(trainer.initial_loop_state(ROWS)),
        windows=windows,
        actions=[
            tbptt.EveryCall(tbptt.Progress(ROWS * WINDOW_LENGTH)),
            tbptt.EveryCall(write),
            tbptt.Every(calls * windows_per_call, evaluate),
            tbptt.EveryCall(sampler),
        ],
    )
    return sampler.samples


def tenths(samples: Sequence[Sample]) -> list[Tenth]:
    """Divides the samples into ten parts and summarises each."""
    parts = [
        samples[len(samples) * k // TENTHS : len(samples) * (k + 1) // TENTHS]
        for k in range(TENTHS)
    ]
    return [
        Tenth(
            ms=statistics.median(one.seconds / one.windows * 1e3 for one in part),
            products=statistics.median(one.seconds / one.windows / one.yardstick for one in part),
            resident_mb=statistics.median(one.resident_mb for one in part),
            traces=max(one.traces for one in part),
            objects=max(one.objects for one in part),
            threads=statistics.median_low(one.threads for one in part),
            files=statistics.median_low(one.files for one in part),
        )
        for part in parts
    ]


def problems(run: Sequence[Tenth], *, slower: float = SLOWER) -> list[str]:
    """Lists resources of which the last tenth uses more than the second, or an empty list."""
    early, late = run[1], run[-1]
    found = []
    allowed = max(MORE_MB, MORE_MEMORY * early.resident_mb)
    if late.resident_mb > early.resident_mb + allowed:
        grown = late.resident_mb - early.resident_mb
        found.append(f"memory grew by {grown:.1f} MB; {allowed:.1f} MB are allowed")
    if late.products > early.products * (1 + slower):
        found.append(
            f"a window takes {late.products:.3f} of the yardstick and took {early.products:.3f}; "
            f"{slower:.0%} more are allowed"
        )
    for name in ("threads", "files"):
        before, after = getattr(early, name), getattr(late, name)
        if after > before:
            found.append(f"{name}: {before} became {after}")
    if late.traces != 2:
        found.append(f"{late.traces} traces; training and evaluation have one each")
    return found


def table(run: Sequence[Tenth]) -> str:
    """Returns a Markdown table with a row for each tenth of a run."""
    lines = [
        "| tenth | ms a window | of the yardstick | MB resident | traces | Python objects "
        "| threads | open files |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {place + 1} | {one.ms:.3f} | {one.products:.3f} | {one.resident_mb:.1f} "
        f"| {one.traces} | {one.objects:,} | {one.threads} | {one.files} |"
        for place, one in enumerate(run)
    ]
    return "\n".join(lines)


def main(_: list[str]) -> None:
    """Trains, prints the table and the verdict."""
    if not pathlib.Path("/proc/self/statm").exists():
        sys.exit("error: this tool reads /proc, so it runs on Linux only.")
    windows_per_call = min(WINDOWS_PER_CALL, WINDOWS.value // (5 * TENTHS))
    with tempfile.TemporaryDirectory() as folder:
        run = tenths(train(WINDOWS.value, pathlib.Path(folder), windows_per_call))
    print(table(run))
    found = problems(run)
    print(f"{WINDOWS.value:,} windows: {'; '.join(found) or 'nothing creeps'}", flush=True)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    app.run(main)
