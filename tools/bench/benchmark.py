"""Measures the time of a training window here and in PyTorch, Keras and JAX, as a table.

    python -m tools.bench.benchmark
    python -m tools.bench.benchmark --sizes=char --contestants=ours-native-xla,torch --rounds=5
    python -m tools.bench.benchmark --sizes= --plot=speed.png
    python -m tools.bench.benchmark --sizes=long --contestants=ours-native-xla,ours-states
    python -m tools.bench.benchmark --sizes=words --contestants=ours-native-xla,ours-chunked

Every contestant is a process of its own. All are built first; then they train in turn, one
call a round, in another order every round, while the others wait, so that anything that slows the
machine slows all of them. Times are medians over the rounds. Ratios are medians of the ratios
within a round: the time of the best peer, or of the first contestant if there is no peer, over
that of the row; above 1, the row is faster.

The ceiling is the fastest large float32 matrix product among NumPy's, PyTorch's and XLA's,
measured in the same rounds; a contestant's share of it counts only the arithmetic of its matrix
products. XLA's own ceiling is shown beside it. Memory is the growth of the process's peak after
the imports. The first step is the time from the end of the imports to the end of the first window:
building, tracing and compiling.
"""

import dataclasses
import datetime
import importlib.metadata
import importlib.util
import json
import math
import operator
import os
import pathlib
import random
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

import tqdm
from absl import app, flags

from tools.bench.ceilings import CEILINGS, ceiling_flops
from tools.bench.contestants import CONTESTANTS, EXTRAS, SIZES, Size
from tools.bench.workers import Worker, WorkerError

SIZE_NAMES = flags.DEFINE_list(
    "sizes",
    ["char", "small", "ptb_small", "deep"],
    f"Models to train, of {', '.join(SIZES)}; empty: only the plot.",
)
NAMES = flags.DEFINE_list(
    "contestants",
    list(CONTESTANTS),
    f"Contestants; the default leaves out: {', '.join(EXTRAS)}.",
)
ROUNDS = flags.DEFINE_integer("rounds", 15, "Turns of every contestant.", lower_bound=1)
JSON = flags.DEFINE_string("json", None, "File for the results; written after every size.")
PLOT = flags.DEFINE_string("plot", None, "PNG file for speed by hidden size and window length.")
PLOT_ROUNDS = flags.DEFINE_integer("plot_rounds", 5, "Turns for each point.", lower_bound=1)
TIMEOUT = flags.DEFINE_float("timeout", 900.0, "Seconds that a build or a turn may take.")

# The contestants of each framework, of which the fastest is compared; float32 only.
FAMILIES = {
    "ours": ("ours-native-xla", "ours-fused-xla", "ours-fused-plain", "ours-scan-xla"),
    "torch": ("torch", "torch-one-thread"),
    "keras": ("keras", "keras-xla"),
    "jax": ("jax",),
}
# The same in bfloat16, of which only these two are compared.
OURS_16 = ("ours-bfloat16-native", "ours-bfloat16-fused")
TORCH_16 = ("torch-bfloat16", "torch-bfloat16-parameters")
PEERS = [family for family in FAMILIES if family != "ours"]
RESETS, WITHOUT_RESETS = "ours-native-xla-resets", "ours-native-xla"
PACKAGES = ("tensorflow", "torch", "keras", "jax")
INSTRUCTIONS = ("avx2", "avx512f", "amx_tile")
PRODUCTS_A_TURN = 5
PAUSE = 0.05  # seconds before a turn, in which the threads of the last contestant come to rest

# The contestants of each line of the plot, of which the fastest is shown at each point.
LINES = {
    "tbptt": ("ours-native-xla", "ours-fused-xla"),
    "torch": ("torch", "torch-one-thread"),
    "keras": ("keras",),
    "jax": ("jax",),
}
HIDDEN_SIZES, HIDDEN_AT = (64, 128, 256, 512, 1024), 64
WINDOW_LENGTHS, LENGTHS_AT = (8, 16, 32, 64, 128, 256), 256
FLOPS_A_TURN = 4e10  # arithmetic of a turn at one point of the plot: about a second

Item = TypeVar("Item")


@dataclasses.dataclass
class Entry:
    """The measurements of one contestant.

    Attributes:
      times: milliseconds a window, one a round.
      first_step_s, peak_mb: see the module.
      loss: the loss of the first window, in nats.
      error: the reason why there are no measurements, or None.
    """

    times: list[float] = dataclasses.field(default_factory=list)
    first_step_s: float = math.nan
    peak_mb: float = math.nan
    loss: float = math.nan
    error: str | None = None


def measure(
    label: str, size: Size, names: Sequence[str], rounds: int, *, timeout: float = 900.0
) -> dict[str, Entry]:
    """Builds all of `names`, then lets them train in turn; an entry keeps a failure's reason."""
    entries = {name: Entry() for name in names}
    workers: dict[str, Worker] = {}

    def attempt(name: str, act: Callable[[Worker], dict[str, Any]]) -> dict[str, Any]:
        try:
            return act(workers[name])
        except WorkerError as error:
            entries[name].error = str(error)
            workers.pop(name).close()
            return {}

    try:
        for name in tracked(names, f"{label}: building"):
            workers[name] = Worker(name, size, timeout=timeout)
            answer = attempt(name, Worker.answer)
            entries[name].first_step_s = answer.get("first_step_s", math.nan)
            entries[name].loss = answer.get("loss", math.nan)
        for turn in tracked(range(rounds + 1), f"{label}: round"):  # the first is not counted
            for name in random.Random(turn).sample(list(workers), len(workers)):
                windows = PRODUCTS_A_TURN if name in CEILINGS else size.windows_per_call
                time.sleep(PAUSE)
                answer = attempt(name, operator.methodcaller("turn", windows))
                if answer and turn > 0:
                    entries[name].times.append(answer["seconds"] / windows * 1e3)
                    entries[name].peak_mb = answer["peak_mb"]
    finally:
        for worker in workers.values():
            worker.close()
    return entries


def tracked(items: Sequence[Item], label: str) -> Iterator[Item]:
    """Yields items and shows progress on standard error: the item, its number and the time left."""
    bar = tqdm.tqdm(
        total=len(items), desc=label, leave=False, disable=not sys.stderr.isatty(), unit=""
    )
    began = time.monotonic()
    for number, item in enumerate(items):
        bar.set_postfix_str(str(item))
        if bar.disable:
            left = (time.monotonic() - began) / max(number, 1) * (len(items) - number)
            text = f", {tqdm.tqdm.format_interval(left)} left" if number else ""
            print(f"{label} {item} ({number + 1} of {len(items)}{text})", file=sys.stderr)
        yield item
        bar.update()
    bar.close()


def ratio(times: Sequence[float], other: Sequence[float]) -> float:
    """Returns the median over the rounds of the other's time divided by this one's."""
    return statistics.median(b / a for a, b in zip(times, other, strict=True))


def best(times: Mapping[str, Sequence[float]], names: Sequence[str]) -> str | None:
    """Returns the name of `names` with the lowest median time, or None if none was measured."""
    there = [name for name in names if name in times]
    return min(there, key=lambda name: statistics.median(times[name]), default=None)


def evaluate(label: str, size: Size, entries: Mapping[str, Entry]) -> dict[str, Any]:
    """Computes all figures of one size, for the table and for JSON."""
    times = {name: entry.times for name, entry in entries.items() if entry.error is None}
    medians = {name: statistics.median(measured) for name, measured in times.items()}
    speeds = {
        name: ceiling_flops(name) / medians[name] / 1e6 for name in CEILINGS if name in medians
    }
    ceiling = max(speeds.values(), default=None)  # GFLOP/s
    compiled = [speed for name, speed in speeds.items() if "tensorflow" in name]
    leaders = {family: best(times, names) for family, names in FAMILIES.items()}
    peer = best(times, [name for family in PEERS for name in FAMILIES[family]])
    shown = [name for name in entries if name not in CEILINGS]
    baseline = peer or next((name for name in shown if name in times), None)

    def share(name: str | None) -> float | None:
        if ceiling is None or name is None:
            return None
        return size.product_flops / (medians[name] * ceiling * 1e6)

    def over(name: str | None, other: str | None) -> float | None:
        return ratio(times[name], times[other]) if name in times and other in times else None

    rows = [
        {
            "name": name,
            "ms": medians.get(name),
            "tokens_per_second": size.tokens / medians[name] * 1e3 if name in medians else None,
            "ratio_to_baseline": over(name, baseline),
            "ratios": {other: over(name, other) for other in shown if other != name},
            "ceiling_share": share(name if name in medians else None),
            "peak_mb": number(entries[name].peak_mb),
            "first_step_s": number(entries[name].first_step_s),
            "first_loss": number(entries[name].loss),
            "error": entries[name].error,
        }
        for name in shown
    ]
    resets = over(WITHOUT_RESETS, RESETS)
    return {
        "size": label,
        "settings": dataclasses.asdict(size),
        **{f"{family}_ms": medians.get(name or "") for family, name in leaders.items()},
        "leaders": leaders,
        "ours_over": {family: over(leaders["ours"], leaders[family]) for family in PEERS},
        "bfloat16_over_torch": over(best(times, OURS_16), best(times, TORCH_16)),
        "best_peer": peer,
        "baseline": baseline,
        "ceiling_share": share(leaders["ours"]),
        "ceiling_gflops": ceiling,
        "xla_gflops": max(compiled, default=None),
        "resets_cost": None if resets is None else resets - 1,
        "rows": rows,
    }


def number(value: float) -> float | None:
    """Returns the value, or None if it is not finite, because JSON has no NaN."""
    return value if math.isfinite(value) else None


def table(result: Mapping[str, Any]) -> str:
    """Returns the contestants of one size as a Markdown table that is aligned as text, too."""
    columns: dict[str, Callable[[Any], str]] = {
        "contestant": lambda row: row["name"],
        "ms a window": lambda row: form(row["ms"], ",.2f"),
        "tokens/s": lambda row: form(row["tokens_per_second"], ",.0f"),
        f"x {result['baseline']}": lambda row: form(row["ratio_to_baseline"], ".2f"),
        "of ceiling": lambda row: form(row["ceiling_share"], ".2f"),
        "peak MB": lambda row: form(row["peak_mb"], ",.0f"),
        "first step s": lambda row: form(row["first_step_s"], ".1f"),
    }
    rows = result["rows"]
    if any(row["error"] for row in rows):
        columns["why not"] = lambda row: row["error"] or ""
    return markdown(list(columns), [[show(row) for show in columns.values()] for row in rows])


def form(value: float | None, spec: str) -> str:
    """Formats a number, or returns a dash for None."""
    return "-" if value is None else format(value, spec)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table; all columns but those of words are aligned right."""
    words = ("contestant", "why not")
    widths = [max(len(cell) for cell in column) for column in zip(header, *rows, strict=True)]
    lines = []
    for cells in (header, *rows):
        padded = [
            cell.ljust(width) if name in words else cell.rjust(width)
            for name, cell, width in zip(header, cells, widths, strict=True)
        ]
        lines.append("| " + " | ".join(padded) + " |")
    rule = [
        "-" * (width + 2) if name in words else "-" * (width + 1) + ":"
        for name, width in zip(header, widths, strict=True)
    ]
    lines.insert(1, "|" + "|".join(rule) + "|")
    return "\n".join(lines)


def summary(result: Mapping[str, Any]) -> str:
    """Returns a summary of one size in one line."""
    if result["ours_ms"] is None:
        return f"{result['size']}: ours was not measured"
    ratios = [
        f"{value:.2f} x {family}"
        for family, value in result["ours_over"].items()
        if value is not None
    ]
    parts = [f"{result['size']}: ours {result['ours_ms']:,.2f} ms ({result['leaders']['ours']})"]
    parts += [", ".join(ratios)] if ratios else []
    if result["ceiling_share"] is not None:
        gflops = f"{result['ceiling_gflops']:,.0f} GFLOP/s"
        compiled = form(result["xla_gflops"], ",.0f")
        parts.append(f"{result['ceiling_share']:.2f} of the ceiling, {gflops} (XLA's {compiled})")
    if result["bfloat16_over_torch"] is not None:
        parts.append(f"bfloat16 {result['bfloat16_over_torch']:.2f} x torch")
    if result["resets_cost"] is not None:
        parts.append(f"resets cost {result['resets_cost'] * 100:.1f} %")
    return "; ".join(parts)


def machine() -> dict[str, Any]:
    """Describes this machine: processor, cores, versions of the packages and the date."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    about = {
        key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)
    }
    flags_there = about.get("flags", "").split()
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": about.get("model name", "unknown processor"),
        "cores": os.cpu_count(),
        "instructions": [name for name in INSTRUCTIONS if name in flags_there],
        "versions": versions,
    }


def heading(about: Mapping[str, Any]) -> str:
    """Returns `machine()` as one line."""
    versions = [f"{name} {version or 'missing'}" for name, version in about["versions"].items()]
    parts = [about["date"], about["cpu"], f"{about['cores']} cores", *about["instructions"]]
    return ", ".join([*parts, *versions])


def write_json(path: pathlib.Path, results: Sequence[Mapping[str, Any]]) -> None:
    """Writes a JSON file, completely or not at all."""
    beside = path.with_name(path.name + ".partial")
    beside.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n", "utf-8")
    os.replace(beside, path)


def with_ceilings(names: Sequence[str]) -> list[str]:
    """Returns the contestants and the matrix products whose package is installed."""
    return [*names, *(name for name, one in CEILINGS.items() if find(one.packages[0]))]


def find(package: str) -> bool:
    """Returns whether a package is installed."""
    return importlib.util.find_spec(package) is not None


def sweep(
    points: Sequence[tuple[int, int]], rounds: int, *, timeout: float
) -> dict[tuple[int, int], dict[str, float]]:
    """Measures tokens per second of each line of the plot, at each `(hidden, window_length)`."""
    names, found = [name for line in LINES.values() for name in line], {}
    for place, (hidden, window_length) in enumerate(points):
        size = Size(32, window_length, 128, hidden, 1, 256, windows_per_call=1)
        windows = max(2, min(200, round(FLOPS_A_TURN / size.product_flops)))
        size = dataclasses.replace(size, windows_per_call=windows)
        label = f"point {place + 1} of {len(points)}, H={hidden}, T={window_length}"
        entries = measure(label, size, names, rounds, timeout=timeout)
        for name, entry in entries.items():
            if entry.error is not None:
                print(f"{label}: {name}: {entry.error}", file=sys.stderr)
        times = {name: entry.times for name, entry in entries.items() if entry.error is None}
        leaders = {line: best(times, those) for line, those in LINES.items()}
        found[hidden, window_length] = {
            line: size.tokens / statistics.median(times[name]) * 1e3
            for line, name in leaders.items()
            if name is not None
        }
    return found


def sweep_table(found: Mapping[tuple[int, int], Mapping[str, float]]) -> str:
    """Returns the figures of the plot, tokens per second, as a table."""
    header = ["hidden", "window length", *(f"{line} tokens/s" for line in LINES)]
    rows = [
        [str(hidden), str(length), *(form(speeds.get(line), ",.0f") for line in LINES)]
        for (hidden, length), speeds in found.items()
    ]
    return markdown(header, rows)


def draw(
    found: Mapping[tuple[int, int], Mapping[str, float]],
    panels: Sequence[tuple[str, Sequence[tuple[int, int]], int]],
    path: str,
) -> None:
    """Plots tokens per second in panels `(title, points, index of the x axis in a point)`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(9.5, 4), sharey=True, layout="constrained"
    )
    for panel, (title, points, axis) in zip(axes, panels, strict=True):
        for line, marker in zip(LINES, "osD^", strict=True):
            there = [point for point in points if line in found[point]]
            panel.plot(
                [point[axis] for point in there],
                [found[point][line] for point in there],
                marker=marker,
                label=line,
                linewidth=2.4 if line == "tbptt" else 1.4,
                zorder=3 if line == "tbptt" else 2,
            )
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set_xticks([point[axis] for point in points])
        panel.set_xticklabels([f"{point[axis]}" for point in points])
        panel.set_xlabel(title)
        panel.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter("{x:,.0f}")
        panel.yaxis.set_minor_formatter(ticker.NullFormatter())
        panel.grid(alpha=0.3)
    axes[0].set_ylabel("tokens/s")
    axes[-1].legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def plot(path: str, rounds: int, *, timeout: float) -> None:
    """Measures both sweeps, prints their figures and draws them."""
    by_hidden = [(hidden, HIDDEN_AT) for hidden in HIDDEN_SIZES]
    by_length = [(LENGTHS_AT, length) for length in WINDOW_LENGTHS]
    found = sweep(list(dict.fromkeys(by_hidden + by_length)), rounds, timeout=timeout)
    print(f"\n{sweep_table(found)}", flush=True)
    panels = [
        (f"hidden size, windows of {HIDDEN_AT}", by_hidden, 0),
        (f"window length, hidden size {LENGTHS_AT}", by_length, 1),
    ]
    draw(found, panels, path)


def check_flags() -> None:
    """Ends the program with a message if a flag is wrong or a package is missing."""
    for flag, given, known in (
        ("sizes", SIZE_NAMES.value, SIZES),
        ("contestants", NAMES.value, {**CONTESTANTS, **EXTRAS}),
    ):
        for name in given:
            if name not in known:
                sys.exit(f"error: --{flag} ({name!r}) must be some of {', '.join(known)}.")
    if PLOT.value and not find("matplotlib"):
        sys.exit("error: --plot needs matplotlib: pip install -e '.[bench]'")
    for path in (JSON.value, PLOT.value):
        if path and not pathlib.Path(path).absolute().parent.is_dir():
            sys.exit(f"error: there is no folder for {path!r}.")


def main(_: list[str]) -> None:
    """Prints a table for each size, and draws the plot if --plot is given."""
    check_flags()
    signal.signal(signal.SIGTERM, end)
    about = machine()
    print(heading(about), flush=True)
    names, results, lines = NAMES.value, [], []
    try:
        for place, label in enumerate(SIZE_NAMES.value):
            size, shown = SIZES[label], f"{label} ({place + 1} of {len(SIZE_NAMES.value)})"
            entries = measure(
                shown, size, with_ceilings(names), ROUNDS.value, timeout=TIMEOUT.value
            )
            results.append({**evaluate(label, size, entries), "machine": about})
            if JSON.value:
                write_json(pathlib.Path(JSON.value), results)
            lines.append(summary(results[-1]))
            print(f"\n{describe(label, size)}\n\n{table(results[-1])}\n\n{lines[-1]}", flush=True)
        if PLOT.value:
            plot(PLOT.value, PLOT_ROUNDS.value, timeout=TIMEOUT.value)
    except KeyboardInterrupt:
        sys.exit("interrupted")
    if len(lines) > 1:
        print("\n" + "\n".join(lines))


def describe(label: str, size: Size) -> str:
    """Describes a size in one line."""
    return (
        f"{label}: {size.rows} rows, windows of {size.window_length}, embedding {size.embedding}, "
        f"{size.layers} x {size.hidden} units, vocabulary {size.vocabulary:,}; "
        f"{size.windows_per_call} windows a turn, {ROUNDS.value} rounds"
    )


def end(*_: Any) -> NoReturn:
    """Handles SIGTERM as Ctrl-C, so that the workers are closed first."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    app.run(main)
