"""Compiles the training loop for a TPU, without one, and prints memory and operations.

    pip install -e '.[tpu-check]'
    python -m tools.bench.tpu_compile --config=char --topology=v5e:2x2
    python -m tools.bench.tpu_compile --config=char,ptb_large,huge --topology=v5e:2x2,v6e:2x2

One call of the trainer, many windows in one program, is exported as StableHLO and compiled for one
core of the slice by the TPU compiler itself (libtpu). It prints the compiler's figures: memory,
arithmetic, bytes moved, and the operations that remain in the loops; a fusion counts as one. The
exit status is 1 if a program does not compile, or does not fit into the core's memory. Nothing is
run on a TPU, and the figures do not include speed.
"""

import importlib.util
import os
import sys
from collections import Counter
from typing import NamedTuple

os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "JAX_PLATFORMS": "cpu"}  # before jax is imported

from absl import app, flags, logging

from tools.bench import hlo
from tools.bench.contestants import SIZES, build_ours
from tools.bench.pjrt import compile_text

CONFIG = flags.DEFINE_list("config", ["char"], f"Models to compile, of {', '.join(SIZES)}.")
TOPOLOGY = flags.DEFINE_list("topology", ["v5e:2x2"], "TPU slices: v5e:2x2, v5p:2x2x1, v6e:2x2.")

# Memory of a core, GiB, as Google's documentation has it.
MEMORY = {"v5e": 16, "v5p": 95, "v6e": 32}
BFLOAT16 = ("huge",)  # sizes whose products are computed in bfloat16


class Compiled(NamedTuple):
    """The compiler's figures of a program.

    Attributes:
      memory_bytes: memory of arguments, results that are not arguments too, and temporaries.
      flops, bytes_moved: figures of one pass through each loop, as the compiler counts them.
      in_loops: the number of operations of each kind in the bodies of loops.
    """

    memory_bytes: int
    flops: float
    bytes_moved: float
    in_loops: Counter[str]


def compile_for(text: str, topology: str) -> Compiled:
    """Compiles StableHLO for one core of a slice.

    Raises:
      Exception: the compiler refuses the program.
    """
    from jax._src import xla_bridge

    topologies = xla_bridge.make_pjrt_tpu_topology(topology)
    executable = compile_text(text, topologies._make_compile_only_devices()[0])
    memory = executable.get_compiled_memory_stats()
    costs = executable.cost_analysis()
    costs = costs[0] if isinstance(costs, list) else costs
    (optimised,) = executable.hlo_modules()
    return Compiled(
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes,
        costs.get("flops", float("nan")),
        costs.get("bytes accessed", float("nan")),
        hlo.operations_in_loops(optimised.to_string()),
    )


def check(config: str, topology: str) -> bool:
    """Compiles one configuration and prints a row; returns whether it compiles and fits."""
    generation = topology.partition(":")[0]
    trainer, loop_state, chunk = build_ours(SIZES[config], bfloat16=config in BFLOAT16)
    exported = hlo.export(trainer, loop_state, chunk)
    try:
        made = compile_for(exported.text, topology)
    except Exception as error:
        print(f"| {config} | {topology} | does not compile: {str(error).splitlines()[0]} |")
        return False
    gib = made.memory_bytes / 2**30
    kinds = ", ".join(f"{count} {kind}" for kind, count in made.in_loops.most_common(6))
    fits = gib <= MEMORY[generation]
    print(
        f"| {config} | {topology} | {gib:.2f} of {MEMORY[generation]} GiB"
        f"{'' if fits else ': DOES NOT FIT'} | {made.flops / 1e9:,.1f} | "
        f"{made.bytes_moved / 1e9:,.2f} | {made.in_loops.total()}: {kinds} |",
        flush=True,
    )
    return fits


def main(argv: list[str]) -> None:
    """Prints a table with a row for each configuration and slice."""
    del argv
    logging.set_verbosity(logging.WARNING)
    for config in CONFIG.value:
        if config not in SIZES:
            sys.exit(f"error: --config ({config!r}) must be of {', '.join(SIZES)}.")
    for topology in TOPOLOGY.value:
        if topology.partition(":")[0] not in MEMORY:
            sys.exit(
                f"error: --topology ({topology!r}) must begin with one of {', '.join(MEMORY)}."
            )
    if not all(importlib.util.find_spec(package) for package in ("jax", "libtpu")):
        sys.exit("error: the compiler for TPUs is not installed: pip install -e '.[tpu-check]'")
    print("| config | slice | memory of a core | GFLOP | GB moved | operations in loops |")
    print("|---|---|---|---:|---:|---|")
    fine = [check(config, topology) for config in CONFIG.value for topology in TOPOLOGY.value]
    sys.exit(0 if all(fine) else 1)


if __name__ == "__main__":
    app.run(main)
