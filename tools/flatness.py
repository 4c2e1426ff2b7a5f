"""Shows that time and memory a window do not depend on where the window is, nor on the corpus.

    python -m tools.flatness

Two tables. The first: calls of 250 to 1,000 windows; what a window costs in the first and in
the last quarter of the longest. The second: the same training on memory-mapped streams of
10^5 and of 10^8 tokens, in processes of their own, taken in turn; medians, and the largest
resident memory.
"""

import json
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
from absl import app, flags

import tbptt
from tbptt import optimizers
from tbptt.streams.corpus import open_tokens

ROUNDS = flags.DEFINE_integer("rounds", 5, "How often each thing is measured; medians count.")
LARGE = flags.DEFINE_integer("large", 100_000_000, "Tokens of the large stream.")
SMALL = flags.DEFINE_integer("small", 100_000, "Tokens of the small stream.")
TOKEN_FILE = flags.DEFINE_string(
    "token_file", None, "Measure this token file only, and print JSON."
)

ROWS, WINDOW, VOCABULARY = 32, 32, 256


def build(path: pathlib.Path) -> tuple[tbptt.Trainer, tbptt.ContiguousStream]:
    """A small character model and a stream from a memory map."""
    stream = tbptt.ContiguousStream(
        open_tokens(path), rows=ROWS, window_length=WINDOW, vocabulary_size=VOCABULARY
    )
    seeds = tbptt.split_seed(tbptt.make_seed(0), 2)
    model = tbptt.LanguageModel(VOCABULARY, 32, tbptt.LSTM(32, 64, seed=seeds[0]), seed=seeds[1])
    trainer = tbptt.Trainer(model, tbptt.cross_entropy, optimizers.sgd(0.1))
    return trainer, stream


def write_tokens(path: pathlib.Path, count: int) -> None:
    """Random tokens, a piece at a time."""
    rng = np.random.default_rng(0)
    with open(path, "wb") as file:
        for start in range(0, count, 10_000_000):
            size = min(10_000_000, count - start)
            file.write(rng.integers(0, VOCABULARY, size, np.uint16).tobytes())


def measure(path: pathlib.Path) -> dict[str, float]:
    """Milliseconds a window, feeding included, and megabytes resident at most."""
    trainer, stream = build(path)
    feed = tbptt.PrefetchFeed(stream, 20)
    carry, cursor = trainer.initial_carry(ROWS), tbptt.Cursor()
    times = []
    for _ in range(40):
        began = time.perf_counter()
        chunk, cursor = feed.take(cursor, 20)
        carry, metrics = trainer(carry, chunk)
        metrics.read()
        times.append((time.perf_counter() - began) / 20 * 1e3)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"ms": statistics.median(times[5:]), "resident_mb": peak}


def by_place_in_call(path: pathlib.Path) -> None:
    """Prints the first table."""
    trainer, stream = build(path)
    feed = tbptt.ResidentFeed(stream, 1000)  # nothing is read while the clock runs
    carry = trainer.initial_carry(ROWS)
    times: dict[int, list[float]] = {count: [] for count in (250, 500, 750, 1000)}
    for turn in range(ROUNDS.value + 1):
        for count, measured in times.items():
            chunk, _ = feed.take(tbptt.Cursor(), count)
            began = time.perf_counter()
            trainer(carry, chunk)[1].read()
            if turn > 0:  # the first turn compiles
                measured.append(time.perf_counter() - began)
    medians = {count: statistics.median(measured) for count, measured in times.items()}
    first, last = medians[250] / 250, (medians[1000] - medians[750]) / 250
    print("| windows of a call | ms a window |\n|---|---|")
    print(f"| 1 to 250 | {first * 1e3:.3f} |\n| 751 to 1,000 | {last * 1e3:.3f} |")
    print(f"| last / first | {last / first:.3f} |\n", flush=True)


def by_size(small: pathlib.Path, large: pathlib.Path) -> None:
    """Prints the second table."""
    found: dict[pathlib.Path, list[dict[str, float]]] = {small: [], large: []}
    for _ in range(ROUNDS.value):
        for path, measured in found.items():
            command = [sys.executable, "-m", "tools.flatness", f"--token_file={path}"]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            measured.append(json.loads(output))
    medians = {
        path: {key: statistics.median(one[key] for one in measured) for key in measured[0]}
        for path, measured in found.items()
    }
    print("| tokens of the stream | ms a window | MB resident |\n|---|---|---|")
    for path, count in ((small, SMALL.value), (large, LARGE.value)):
        print(f"| {count:,} | {medians[path]['ms']:.3f} | {medians[path]['resident_mb']:.0f} |")
    ratio = {key: medians[large][key] / medians[small][key] for key in ("ms", "resident_mb")}
    print(f"| large / small | {ratio['ms']:.3f} | {ratio['resident_mb']:.3f} |")


def main(_: list[str]) -> None:
    """Both tables, or one measurement."""
    if TOKEN_FILE.value:
        print(json.dumps(measure(pathlib.Path(TOKEN_FILE.value))))
        return
    with tempfile.TemporaryDirectory() as folder:
        small, large = pathlib.Path(folder, "small.bin"), pathlib.Path(folder, "large.bin")
        write_tokens(small, SMALL.value)
        write_tokens(large, LARGE.value)
        by_place_in_call(small)
        by_size(small, large)


if __name__ == "__main__":
    app.run(main)
