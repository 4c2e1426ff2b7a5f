"""Checks that data-parallel training on many replicas gives the losses of a single device.

    python -m tools.bench.compare_replicas --windows=200

It trains an LSTM on documents, so that rows are reset inside windows, with clipping by the global
norm and Adam: on one device, on two and four logical devices of this CPU, and in two processes over
loopback. It prints the largest relative difference of a window's loss from that on one device. The
exit status is 1 if that is more than --tolerance.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import tqdm
from absl import app, flags, logging

import tbptt
from tbptt import optimizers
from tbptt.experiment import Options, replicas_of

WINDOWS = flags.DEFINE_integer("windows", 200, "Windows to train.", lower_bound=1)
JIT_COMPILE = flags.DEFINE_bool("jit_compile", True, "Compile the training loops with XLA.")
TOLERANCE = flags.DEFINE_float("tolerance", 1e-4, "Largest difference of a loss, relative.")
LOSSES = flags.DEFINE_string(
    "losses", None, "For the processes that it starts: train, and write the losses to this file."
)
DEVICES = flags.DEFINE_integer(
    "logical_devices", 0, "For the processes that it starts: devices of the CPU; 0: one."
)

ROWS, WINDOW_LENGTH, VOCABULARY = 8, 16, 50
TRAIN = [sys.executable, "-m", "tools.bench.compare_replicas"]
LAUNCH = [sys.executable, "-m", "tools.launch", "--workers=2", "--"]
SETUPS = {
    "one device": TRAIN,
    "2 logical devices": [*TRAIN, "--logical_devices=2"],
    "4 logical devices": [*TRAIN, "--logical_devices=4"],
    "2 processes": [*LAUNCH, *TRAIN],
}


def losses(windows: int, devices: int, jit_compile: bool) -> tuple[list[float], bool]:
    """Returns the loss of every window, and whether this process must write them."""
    replicas = replicas_of(Options(logical_devices=devices))
    rng = np.random.default_rng(0)
    texts = [  # each counts upwards from a random number, with some wrong tokens
        np.where(rng.random(length) < 0.2, rng.integers(VOCABULARY), np.arange(length))
        for length in rng.integers(5, 60, 400)
    ]
    documents = tbptt.Segments.of([(text + rng.integers(9)) % VOCABULARY for text in texts])
    stream = tbptt.DocumentStream(
        documents, rows=ROWS, window_length=WINDOW_LENGTH, vocabulary_size=VOCABULARY
    )
    with replicas.scope():
        seeds = tbptt.split_seed(tbptt.make_seed(0), 2)
        model = tbptt.LanguageModel(
            VOCABULARY, 16, tbptt.LSTM(16, 32, seed=seeds[0]), seed=seeds[1]
        )
        optimizer = optimizers.chain(optimizers.clip_by_global_norm(0.3), optimizers.adam(0.01))
        trainer = tbptt.Trainer(model, optimizer, replicas=replicas, jit_compile=jit_compile)
    found: list[float] = []
    tbptt.train(
        trainer,
        tbptt.open_feed(stream, 1, replicas=replicas),
        tbptt.RunState(trainer.initial_loop_state(ROWS)),
        windows=windows,
        actions=[tbptt.Every(1, lambda report: found.append(report.metrics.loss))],
    )
    return found, replicas.is_chief


def main(argv: list[str]) -> None:
    """Trains and writes losses, or starts all processes that do and compares them."""
    del argv
    if LOSSES.value:
        logging.set_verbosity(logging.WARNING)
        found, writes = losses(WINDOWS.value, DEVICES.value, JIT_COMPILE.value)
        if writes:
            pathlib.Path(LOSSES.value).write_text(json.dumps(found))
        return
    results: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, command in tqdm.tqdm(SETUPS.items(), disable=not sys.stderr.isatty()):
            file = pathlib.Path(folder, f"{len(results)}.json")
            flags_of = [f"--losses={file}", f"--windows={WINDOWS.value}"]
            flags_of.append("--jit_compile" if JIT_COMPILE.value else "--nojit_compile")
            ended = subprocess.run([*command, *flags_of], capture_output=True, text=True)
            if ended.returncode:
                sys.exit(f"error: {name}: {(ended.stdout + ended.stderr)[-2000:]}")
            results[name] = np.array(json.loads(file.read_text()))
    one = results.pop("one device")
    print(f"{len(one)} windows: loss {one[0]:.4f} at first, {one[-1]:.4f} at last, on one device.")
    worst = {name: np.max(np.abs(of_many / one - 1)) for name, of_many in results.items()}
    for name, difference in worst.items():
        print(f"{name}: largest relative difference of a loss {difference:.1e}")
    sys.exit(0 if max(worst.values()) <= TOLERANCE.value else 1)


if __name__ == "__main__":
    app.run(main)
