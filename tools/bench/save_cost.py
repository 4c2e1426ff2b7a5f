"""Measures the cost of a checkpoint for the training meanwhile, in time and in memory.

    python -m tools.bench.save_cost

It trains a model of some 20 million parameters with Adam. The price of a save is the extra time of
the calls from its beginning to the end of its writing, compared with the same number of undisturbed
calls, and includes the copy between two calls. It prints medians of some saves, their share of a
minute, and the extra resident memory in units of the saved bytes.
"""

import pathlib
import statistics
import tempfile
import time

from absl import app, flags

import tbptt
from tbptt import optimizers
from tbptt.checkpoint import Checkpoints
from tbptt.checkpoint.snapshot import snapshot
from tools.bench import small_model

HIDDEN = flags.DEFINE_integer("hidden", 2000, "Units of the LSTM.")
ROWS = flags.DEFINE_integer("rows", 16, "Rows of a window of 16 steps; more: longer calls.")
SAVES = flags.DEFINE_integer("saves", 7, "Number of checkpoints; medians are shown.")


def peak_mb(reset: bool = False) -> float:
    """Returns the largest number of megabytes resident since the last reset."""
    if reset:
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def main(argv: list[str]) -> None:
    """Measures what saving costs and prints the figures."""
    del argv
    trainer = small_model.build(embedding=512, hidden=HIDDEN.value, optimizer=optimizers.adam(1e-4))
    with tempfile.TemporaryDirectory() as folder:
        tokens = pathlib.Path(folder, "tokens.bin")
        small_model.write_tokens(tokens, 100_000)
        stream = small_model.open_stream(tokens, rows=ROWS.value, window_length=16)
        feed = tbptt.open_feed(stream, 1)
        run_state = tbptt.RunState(trainer.initial_loop_state(ROWS.value))

        def call() -> float:
            nonlocal run_state
            began = time.perf_counter()
            chunk, cursor = feed.take(run_state.cursor, 1)
            loop_state, metrics = trainer(run_state.loop_state, chunk)
            metrics.read()
            run_state = tbptt.RunState(loop_state, cursor)
            return time.perf_counter() - began

        for _ in range(3):  # the first compiles
            call()
        checkpoints = Checkpoints(pathlib.Path(folder, "checkpoints"))
        copying, writing, prices, extra = [], [], [], []
        for _ in range(SAVES.value):
            peak_mb(reset=True)
            alone = statistics.median(call() for _ in range(10))
            before = peak_mb()
            peak_mb(reset=True)
            began = time.perf_counter()
            taken = snapshot(trainer, run_state)
            copying.append(time.perf_counter() - began)
            saved_mb = sum(array.nbytes for array in taken.arrays.values()) / 1e6
            checkpoints.save(taken)
            del taken
            calls = 0
            while checkpoints.writing:
                call()
                calls += 1
            writing.append(time.perf_counter() - began)
            prices.append(writing[-1] - calls * alone)
            extra.append(peak_mb() - before)
    parameters = sum(v.shape.num_elements() for v in trainer.model.trainable_variables)
    price = statistics.median(prices)
    print(f"{parameters / 1e6:.1f} million parameters, {saved_mb:.0f} MB a checkpoint")
    copied, written = statistics.median(copying), statistics.median(writing)
    print(f"copied in {copied:.3f} s, written after {written:.2f} s")
    print(f"price {price:.2f} s: {price / 60:.2%} of the time at one save a minute")
    most = statistics.median(extra)
    print(f"resident {most:.0f} MB more while saving: {most / saved_mb:.2f} of what is saved")


if __name__ == "__main__":
    app.run(main)
