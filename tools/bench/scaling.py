"""Predicts the gain of more devices by a cost model, and checks the model on this machine.

    python -m tools.bench.scaling --sizes=char,ptb_large,huge
    python -m tools.bench.scaling --sizes=char --levels=8:450:3,32:50:10 --tflops=495
    python -m tools.bench.scaling --sizes=char --measure=4

Every replica has the rows of the size (weak scaling); `cost_model.py` has the equations. The
first two commands only calculate. The third starts processes on this machine, one thread each,
and lets them train in turn, alone, beside each other and together; it measures the links by
all-reduces alone, and compares the model with the measurements. Times are medians over rounds,
efficiencies medians of ratios within a round. With more processes than cores the model assumes that
all computation is slower in proportion.
"""

import os
import sys

from absl import app, flags

from tools.bench.contestants import SIZES
from tools.bench.cost_model import MACHINES, comparison, measure, own_machine, predictions
from tools.bench.workers import WorkerError

SIZE_NAMES = flags.DEFINE_list("sizes", ["char"], f"Models to train, of {', '.join(SIZES)}.")
LEVELS = flags.DEFINE_list(
    "levels", [], "A machine of your own: members:GB/s:microseconds, the innermost first."
)
TFLOPS = flags.DEFINE_float("tflops", 100.0, "Peak of a device of your own, 10^12 a second.")
WIRE_BYTES = flags.DEFINE_integer("wire_bytes", 4, "Bytes of a number sent; bfloat16: 2.")
MEASURE = flags.DEFINE_integer(
    "measure", 0, "Compare with 2 to this many processes here, of the first size.", lower_bound=0
)
ROUNDS = flags.DEFINE_integer("rounds", 7, "Turns of each; medians are shown.", lower_bound=1)
WINDOWS = flags.DEFINE_integer(
    "windows", 8, "Windows of a turn; the first one wakes idle processes.", lower_bound=1
)
TIMEOUT = flags.DEFINE_float("timeout", 600.0, "Seconds that a process may take to answer.")


def main(argv: list[str]) -> None:
    """Prints predictions of the cost model, or measures and compares."""
    del argv
    for name in SIZE_NAMES.value:
        if name not in SIZES:
            sys.exit(f"error: --sizes ({name!r}) must be of {', '.join(SIZES)}.")
    if not MEASURE.value:
        machines = MACHINES
        if LEVELS.value:
            try:
                machines = {"yours": own_machine(LEVELS.value, TFLOPS.value * 1e12)}
            except ValueError as error:
                sys.exit(f"error: {error}")
        print(predictions(SIZE_NAMES.value, machines, WIRE_BYTES.value))
        return
    if MEASURE.value == 1:
        sys.exit("error: --measure (1) must be 2 processes or more: one has nothing to sum with.")
    size = SIZES[SIZE_NAMES.value[0]]
    try:
        found = measure(size, MEASURE.value, ROUNDS.value, WINDOWS.value, TIMEOUT.value)
    except WorkerError as error:
        sys.exit(f"error: a process cannot go on: {error}")
    print(comparison(found, 4 * size.parameters, os.cpu_count() or 1))


if __name__ == "__main__":
    app.run(main)
