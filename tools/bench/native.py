"""Says which native kernels this machine has, and how fast they are beside XLA's own operations.

    python -m tools.bench.native

Every path of the kernels that the processor has is loaded in a process of its own. There an LSTM
layer of each size runs a window, forward alone and with all gradients, each a compiled program, in
turn with the same of `backend="fused"`. Medians over the rounds are shown: milliseconds, GFLOP/s of
the products, and how many times faster than XLA's the kernels are. Below that stand what resets of
a hundredth of the rows cost, and one step of one row of 512 units. Beside a path below the best one
XLA is told to leave the same instructions unused, but its smaller products do not.
"""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from absl import app, flags, logging

from tbptt.native import errors, paths
from tbptt.native.compiler import find_compiler
from tools.bench.contestants import SIZES
from tools.bench.kernels import NAMES, STEP, measure_here

SIZE_NAMES = flags.DEFINE_list(
    "sizes", ["char", "small", "ptb_small", "deep"], f"Sizes to measure, of {', '.join(SIZES)}."
)
TYPES = flags.DEFINE_list("types", ["float32", "bfloat16"], "Types of the products.")
PATHS = flags.DEFINE_list("paths", [], "Paths to measure; empty: all that the processor has.")
ROUNDS = flags.DEFINE_integer("rounds", 9, "Rounds; medians are shown.", lower_bound=1)
ROUND_MS = flags.DEFINE_float("round_ms", 40.0, "Least milliseconds of a program in a round.")
AS_JSON = flags.DEFINE_bool(
    "as_json", False, "Measure the path of TBPTT_NATIVE in this process, and print it as JSON."
)
# The instructions that XLA, and the oneDNN in it, may use beside a lower path.
LOWERED = {
    "avx512": ("AVX512", "AVX512_CORE"),
    "avx2": ("AVX2", "AVX2"),
    "portable": ("SSE4_2", "SSE41"),
}
# The products of [T B, D + H] with [D + H, 4 H], or of that size, in what is measured.
PRODUCTS = {"forward": 1, "training": 3}


def measure_path(path: str) -> dict[str, Any]:
    """Measures a path in a process of its own."""
    logging.info("Measuring the path %s ...", path)
    command = [
        sys.executable, "-m", "tools.bench.native", "--as_json",
        f"--sizes={','.join(SIZE_NAMES.value)}", f"--types={','.join(TYPES.value)}",
        f"--rounds={ROUNDS.value}", f"--round_ms={ROUND_MS.value}",
    ]  # fmt: skip
    environment = os.environ | {paths.VARIABLE: path}
    if path in LOWERED and platform.machine() in ("x86_64", "AMD64"):
        xla, onednn = LOWERED[path]
        given = os.environ.get("XLA_FLAGS", "")
        environment |= {"XLA_FLAGS": f"{given} --xla_cpu_max_isa={xla}".strip()}
        environment |= {"ONEDNN_MAX_CPU_ISA": onednn}
    ended = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if ended.returncode:
        return {"why_not": f"measuring it ended with status {ended.returncode}"}
    return json.loads(ended.stdout.splitlines()[-1])


def available(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns a table of the paths: the instructions they use, their libraries, or why not."""
    lines = ["| path | instructions | compiled, s | loaded, s | library |", "|---|---|---|---|---|"]
    for name, result in found.items():
        if "why_not" in result:
            lines.append(f"| {name} | - | - | - | not available: {result['why_not']} |")
            continue
        compiled = f"{result['compiled_s']:.1f}" if result["compiled_s"] else "before"
        lines.append(
            f"| {name} | {result['path']} | {compiled} | {result['loaded_s']:.2f} "
            f"| {result['file']} |"
        )
    return "\n".join(lines)


def speeds(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns a table of the speed of every path at every size."""
    lines = [
        "| size | products | what | path | ms | GFLOP/s | XLA, ms | XLA / it |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for rows in zip(*(result["rows"] for result in found.values()), strict=True):
        for path, row in zip(found, rows, strict=True):
            if row["what"] not in PRODUCTS:
                continue
            size = SIZES[row["size"]]
            weights = 4.0 * size.hidden * (size.embedding + size.hidden)
            flops = 2 * PRODUCTS[row["what"]] * size.tokens * weights
            lines.append(
                f"| {row['size']} | {row['type']} | {row['what']} | {path} | {row['native']:.3f} "
                f"| {flops / row['native'] / 1e6:.0f} | {row['xla']:.3f} "
                f"| {row['xla'] / row['native']:.2f} |"
            )
    return "\n".join(lines)


def resets(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns a table of what resets cost a window, of the kernels and of XLA's operations."""
    lines = ["| size | products | path | resets cost | XLA's |", "|---|---|---|---|---|"]
    for path, result in found.items():
        rows = {(row["size"], row["type"], row["what"]): row for row in result["rows"]}
        for (size, dtype, what), row in rows.items():
            if what == "with resets":
                without = rows[size, dtype, "training"]
                costs = [f"{row[name] / without[name] - 1:+.1%}" for name in NAMES]
                lines.append(f"| {size} | {dtype} | {path} | {' | '.join(costs)} |")
    return "\n".join(lines)


def steps(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns a table of one step of one row."""
    head = f"one step of one row, {STEP.hidden} units"
    lines = [f"| {head} | us | XLA, us | XLA / it |", "|---|---|---|---|"]
    for path, result in found.items():
        ours, other = result["step"]["native"], result["step"]["xla"]
        lines.append(f"| {path} | {ours * 1e3:.0f} | {other * 1e3:.0f} | {other / ours:.2f} |")
    return "\n".join(lines)


def check_flags() -> None:
    """Ends the program with a message if there is no such size or type."""
    for flag, given, known in (
        ("sizes", SIZE_NAMES.value, [*SIZES]),
        ("types", TYPES.value, ["float32", "bfloat16"]),
        ("paths", PATHS.value, ["best", *paths.NEEDED]),
    ):
        for name in given:
            if name not in known:
                sys.exit(f"error: --{flag} ({name!r}) must be some of {', '.join(known)}.")


def find_paths() -> list[str]:
    """Returns the paths that the processor has, or of those the ones that were asked for."""
    requested, compiler = paths.requested_path(), find_compiler()
    if requested == "off":
        raise errors.Unavailable(f"{paths.VARIABLE}=off")
    print(f"compiler: {' '.join(compiler.command)}, {compiler.version}")
    if PATHS.value:
        return PATHS.value
    return [path.name for path in paths.paths_to_try(requested, compiler)]


def main(_: list[str]) -> None:
    """Prints what is available, and a table of each kind."""
    check_flags()
    if AS_JSON.value:
        sizes = {name: SIZES[name] for name in SIZE_NAMES.value}
        options = {"rounds": ROUNDS.value, "round_ms": ROUND_MS.value}
        print(json.dumps(measure_here(sizes, TYPES.value, **options)))
        return
    try:
        names = find_paths()
    except errors.Unavailable as error:
        print(f"The native kernels are not available: {error.reason}.")
        return
    found = {name: measure_path(name) for name in names}
    tables = [available(found)]
    found = {name: result for name, result in found.items() if "why_not" not in result}
    if found:
        tables += [speeds(found), resets(found), steps(found)]
    print("\n" + "\n\n".join(tables))


if __name__ == "__main__":
    app.run(main)
