"""Kills a training process again and again, and compares its result with an undisturbed run.

    python -m tools.bench.torture --kills=200
    python -m tools.bench.torture --kills=20 --compiled

A real experiment (`experiments.forecast`, with dropout, Adam, several rows and a validation,
saving every few windows) is killed by SIGKILL: every other time at a random instant, else in the
middle of a save, which is recognised by the unfinished folder that is left. The same command is
given again until the run ends; then parameters, optimizer state, state of all rows, cursor and best
record must be equal, bit for bit, to those of a run that was never killed, and so must the result
and every loss in TensorBoard. Runs follow each other until --kills is reached. The exit status is 1
on any difference and on any hang.
"""

import json
import pathlib
import random
import subprocess
import sys
import tempfile
import time

from absl import app, flags
from tensorboard.backend.event_processing import plugin_event_accumulator
from tensorboard.util.tensor_util import make_ndarray

from tbptt import checkpoint as ck
from tools.inspect_checkpoint import difference, read_newest

KILLS = flags.DEFINE_integer("kills", 200, "Number of times that a process is killed.")
COMPILED = flags.DEFINE_bool("compiled", False, "With XLA; every start then compiles.")
WINDOWS = flags.DEFINE_integer("run_windows", 400, "Windows of a run.", lower_bound=50)
SEED = flags.DEFINE_integer("random_seed", 0, "Seed of the instants of the kills.")
LIMIT = 300.0  # seconds after which a start without a checkpoint, or an end, counts as a hang

ARGUMENTS = [
    "--rows=4", "--hidden=96", "--dropout=0.3", "--recurrent_dropout=0.2", "--window_length=16",
    "--windows_per_call=3", "--eval_every=50", "--save_every=3",
]  # fmt: skip


def start(folder: pathlib.Path) -> subprocess.Popen:
    """Starts the experiment as a user does, in a process."""
    command = [sys.executable, "-m", "experiments.forecast", f"--logdir={folder}", *ARGUMENTS]
    command.append(f"--max_windows={WINDOWS.value}")
    command.append("--jit_compile" if COMPILED.value else "--nojit_compile")
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def finish(folder: pathlib.Path) -> None:
    """Starts a run again and waits until it is finished.

    Raises:
      RuntimeError: the run fails.
      subprocess.TimeoutExpired: the run hangs.
    """
    with start(folder) as process:
        try:
            status = process.wait(LIMIT)
        finally:
            process.kill()
    if status:
        raise RuntimeError(f"The run in {folder} ended with status {status}.")


def newest(checkpoints: pathlib.Path) -> int:
    """Returns the step of the newest checkpoint, or -1 if there is none."""
    steps = [int(p.name.partition("-")[2]) for p in checkpoints.glob("step-*[0-9]")]
    return max(steps, default=-1)


def saving(checkpoints: pathlib.Path) -> bool:
    """Returns whether a checkpoint is begun and not finished."""
    return next(checkpoints.glob(f"*{ck.store.PARTIAL}"), None) is not None


def kill_once(folder: pathlib.Path, rng: random.Random, in_save: bool) -> bool | None:
    """Starts the run and kills it; returns whether during a save, None if it ended before.

    Raises:
      RuntimeError: nothing new was saved for too long.
    """
    checkpoints = folder / "checkpoints"
    before, deadline = newest(checkpoints), time.monotonic() + LIMIT
    # Some kills come before a new checkpoint is written; most come after one.
    early = rng.random() < 0.1
    with start(folder) as process:
        while not early and newest(checkpoints) <= before and process.poll() is None:
            if time.monotonic() > deadline:
                process.kill()
                raise RuntimeError(f"Nothing was saved in {folder} for {LIMIT:.0f} seconds.")
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 8.0 if early else 1.0))
        while in_save and process.poll() is None and not saving(checkpoints):
            time.sleep(0.0005)
        process.kill()
        process.wait()
    if (folder / "result.json").exists():
        return None
    return saving(checkpoints)


def logged(folder: pathlib.Path) -> dict[str, dict[int, list[float]]]:
    """Reads all scalars but speeds from TensorBoard's events, by tag and step."""
    events = plugin_event_accumulator.EventAccumulator(str(folder), size_guidance={"tensors": 0})
    kinds = ("loss/", "optim/", "state/")
    tags = [tag for tag in events.Reload().Tags()["tensors"] if tag.startswith(kinds)]
    found: dict[str, dict[int, list[float]]] = {}
    for tag in tags:
        found[tag] = {}
        for event in events.Tensors(tag):
            value = make_ndarray(event.tensor_proto)
            if value.ndim == 0:
                found[tag].setdefault(event.step, []).append(value.item())
    return found


def compare(ours: pathlib.Path, whole: pathlib.Path) -> list[str]:
    """Returns the differences between a run and the undisturbed one."""
    (_, a), (_, b) = (read_newest(folder) for folder in (ours, whole))
    lines = difference(a, b)
    of_ours, of_whole = (logged(folder) for folder in (ours, whole))
    for tag in sorted({*of_ours, *of_whole}):
        if of_ours.get(tag) != of_whole.get(tag):
            lines.append(f"the events of {tag} differ")
    results = [json.loads((folder / "result.json").read_text("utf-8")) for folder in (ours, whole)]
    for name in ("valid", "test", "windows", "settings"):
        if results[0][name] != results[1][name]:
            lines.append(f"{name}: {results[0][name]} and {results[1][name]}")
    return lines


def main(argv: list[str]) -> None:
    """Kills and compares until --kills is reached; prints a line a run, and the count."""
    del argv
    rng = random.Random(SEED.value)
    kills = during = runs = 0
    with tempfile.TemporaryDirectory() as parent:
        whole = pathlib.Path(parent, "whole")
        finish(whole)
        while kills < KILLS.value:
            ours = pathlib.Path(parent, f"run-{runs}")
            while kills < KILLS.value:
                in_save = kill_once(ours, rng, in_save=kills % 2 == 0)
                if in_save is None:
                    break
                kills += 1
                during += in_save
            if not (ours / "result.json").exists():
                finish(ours)
            lines = compare(ours, whole)
            runs += 1
            print(
                f"run {runs}: {kills} kills so far, {during} of them during a save; "
                + (f"DIFFERENT: {'; '.join(lines)}" if lines else "no difference"),
                flush=True,
            )
            if lines:
                sys.exit(1)
    print(f"{kills} kills, {during} during a save, {runs} runs: no difference, no hang")


if __name__ == "__main__":
    app.run(main)
