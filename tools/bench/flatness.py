"""Checks that a window's time and memory depend neither on its place nor on the corpus size.

    python -m tools.bench.flatness

It prints two tables. The first: calls of 250 to 1,000 windows; the time of a window in the first
and in the last quarter of the longest. The second: the same training on memory-mapped streams of
10^5 and of 10^8 tokens, in processes of their own, taken in turn; medians, and the largest
resident memory.
"""

import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from absl import app, flags

import tbptt
from tools.bench import small_model

REPEATS = flags.DEFINE_integer("repeats", 5, "Measurements of each figure; medians are shown.")
LARGE = flags.DEFINE_integer("large", 100_000_000, "Tokens of the large stream.")
SMALL = flags.DEFINE_integer("small", 100_000, "Tokens of the small stream.")
WINDOWS = flags.DEFINE_integer("call_windows", 1000, "Windows of the longest call.", lower_bound=4)
CALLS = flags.DEFINE_integer("calls", 40, "Calls of 20 windows on each stream.", lower_bound=8)
TOKEN_FILE = flags.DEFINE_string(
    "token_file", None, "Measure this token file only, and print JSON."
)

ROWS, WINDOW = 32, 32


def by_place_in_call(path: pathlib.Path) -> None:
    """Prints the time of a window by its place in a call, as a table."""
    trainer = small_model.build()
    stream = small_model.open_stream(path, rows=ROWS, window_length=WINDOW)
    feed = tbptt.ResidentFeed(stream, WINDOWS.value)  # nothing is read while the clock runs
    loop_state = trainer.initial_loop_state(ROWS)
    quarter = WINDOWS.value // 4
    times: dict[int, list[float]] = {k * quarter: [] for k in (1, 2, 3, 4)}
    for turn in range(REPEATS.value + 1):
        for count, measured in times.items():
            chunk, _ = feed.take(tbptt.Cursor(), count)
            began = time.perf_counter()
            trainer(loop_state, chunk)[1].read()
            if turn > 0:  # the first turn compiles
                measured.append(time.perf_counter() - began)
    medians = {count: statistics.median(measured) for count, measured in times.items()}
    first = medians[quarter] / quarter
    last = (medians[4 * quarter] - medians[3 * quarter]) / quarter
    print("| windows of a call | ms a window |\n|---|---|")
    print(f"| 1 to {quarter} | {first * 1e3:.3f} |")
    print(f"| {3 * quarter + 1} to {4 * quarter:,} | {last * 1e3:.3f} |")
    print(f"| last / first | {last / first:.3f} |\n", flush=True)


def by_size(small: pathlib.Path, large: pathlib.Path) -> None:
    """Prints the time of a window on a small and on a large corpus, as a table."""
    found: dict[pathlib.Path, list[dict[str, float]]] = {small: [], large: []}
    for _ in range(REPEATS.value):
        for path, measured in found.items():
            command = [sys.executable, "-m", "tools.bench.flatness", f"--token_file={path}"]
            command.append(f"--calls={CALLS.value}")
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
    """Prints both tables, or one measurement as JSON."""
    if TOKEN_FILE.value:
        path = pathlib.Path(TOKEN_FILE.value)
        stream = small_model.open_stream(path, rows=ROWS, window_length=WINDOW)
        print(json.dumps(small_model.measure(stream, CALLS.value)))
        return
    with tempfile.TemporaryDirectory() as folder:
        small, large = pathlib.Path(folder, "small.bin"), pathlib.Path(folder, "large.bin")
        small_model.write_tokens(small, SMALL.value)
        small_model.write_tokens(large, LARGE.value)
        by_place_in_call(small)
        by_size(small, large)


if __name__ == "__main__":
    app.run(main)
