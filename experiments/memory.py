"""Measures learning across a lag by windows of several lengths: the copying and adding tasks.

    python -m experiments.memory
    python -m experiments.memory --task=adding --shortest=20 --longest=20 --cuts=10,20,20/10

`copy`: some symbols, then as many blanks, at which the symbols must be repeated; their number, the
lag, is drawn anew from --shortest to --longest each time. The figure is the share of symbols
repeated wrongly; guessing gives 0.83. `adding`: two numbers of a sequence are marked, and at its
end their sum is the target; the figure is the mean squared error, 0.167 if the guess is always 1.

--cuts names the windows to compare: `T`, windows one after another; `T/k`, windows of T steps that
advance by k; an `f` after it: every window forgets the state. The result is a table. As in
Aicher, Foti & Fox (2019) a window shorter than the lag cannot learn, though the state is carried;
with stride 5 and window length 15 every lag is inside a window.
"""

import dataclasses
import json
import re
import time
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

import tbptt
from experiments import common
from tbptt import checks, experiment
from tbptt.experiment import setting

SYMBOLS = 6
BLANK = SYMBOLS
FIGURE = "figure"  # the metric that the windows are compared by


@dataclasses.dataclass(frozen=True)
class Settings(common.ModelSettings):
    """The settings of the copying and adding tasks, which decide all numbers of a run."""

    task: str = setting("copy", "The task to learn", choices=("copy", "adding"))
    shortest: int = setting(5, "Steps to remember, at least.", least=2)
    longest: int = setting(10, "Steps to remember, at most.", least=2)
    cuts: str = setting("5,15,15/5,15f", "Windows to compare: T, T/stride, each with an f or not.")
    rows: int = setting(64, "B: rows, streams read side by side.", least=1)
    hidden: int = setting(64, "Units in a layer.", least=1)
    learning_rate: float = setting(5e-3, "Peak of the schedule: warm-up, then cosine.", least=0)
    steps: int = setting(40_000, "Steps of every row to train, for each of --cuts.", least=1)

    def check_together(self) -> None:
        """Raises ValueError unless every one of the windows can be trained on."""
        checks.check_at_least("longest", self.longest, self.shortest)
        for cut in self.cuts.split(","):
            parse(cut)
        longest = max(parse(cut).nominal_length for cut in self.cuts.split(","))
        checks.check_at_least("steps", self.steps, max(longest, 2 * self.longest))


def parse(text: str) -> tbptt.Truncation:
    """Parses a window of `--cuts`: `15/5f` is a window of 15 that advances by 5 and forgets."""
    found = re.fullmatch(r"(\d+)(?:/(\d+))?(f?)", text)
    if not found:
        raise ValueError(f"--cuts has {text!r}, but must be like 15, 15/5 or 15f, by commas.")
    stride = int(found[2]) if found[2] else None
    return tbptt.Truncation(int(found[1]), stride=stride, drop_state=1.0 if found[3] else 0.0)


def copying(settings: Settings, steps: int, seed: int) -> tuple[tbptt.Segments, np.ndarray]:
    """Makes the copying task, a segment a row: one-hot inputs `[N, 7]` and labels `[N]`."""
    rng = np.random.default_rng([seed, 1])
    segments, labels = [], []
    for _ in range(settings.rows):
        heard: list[np.ndarray] = []
        said: list[np.ndarray] = []
        while sum(len(part) for part in heard) < steps:
            lag = int(rng.integers(settings.shortest, settings.longest + 1))
            symbols, blanks = rng.integers(SYMBOLS, size=lag), np.full(lag, BLANK)
            heard += [symbols, blanks]
            said += [blanks, symbols]
        segments.append(np.eye(SYMBOLS + 1, dtype=np.float32)[np.concatenate(heard)[:steps]])
        labels.append(np.concatenate(said)[:steps])
    return tbptt.Segments.of(segments), np.concatenate(labels)


def adding(settings: Settings, steps: int, seed: int) -> tuple[tbptt.Segments, np.ndarray]:
    """Makes the adding task: sequences of (number, mark), `[N, 2]`, and their sums `[P]`."""
    rng = np.random.default_rng([seed, 2])
    count = 2 * steps * settings.rows // (settings.shortest + settings.longest)
    segments, sums = [], []
    for _ in range(count):
        length = int(rng.integers(settings.shortest, settings.longest + 1))
        frames = np.stack([rng.random(length), np.zeros(length)], axis=1).astype(np.float32)
        marked = [rng.integers(length // 2), rng.integers(length // 2, length)]
        frames[marked, 1] = 1
        segments.append(frames)
        sums.append(frames[marked, 0].sum())
    return tbptt.Segments.of(segments), np.array(sums, np.float32)


def repeated_wrongly(logits: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
    """Returns 2 for a symbol that is not repeated, else 0: half of all steps repeat a symbol."""
    wrong = tf.argmax(logits, axis=-1, output_type=targets.dtype) != targets
    return 2.0 * tf.cast(wrong & (targets != BLANK), tf.float32)


def sum_error(outputs: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
    """Computes the squared error of the first output, `[T, B]`."""
    return tf.math.squared_difference(outputs[..., 0], targets)


def learn(settings: Settings, cut: str, stop: Callable[[], bool] = lambda: False) -> float:
    """Trains with windows of one kind; returns the figure on sequences that were not trained on.

    Raises:
      UnfinishedError: `stop()` was true before the end of the training.
    """
    truncation = parse(cut)
    make = {"copy": copying, "adding": adding}[settings.task]
    loss, judge, outputs = (
        (tbptt.cross_entropy, repeated_wrongly, SYMBOLS + 1)
        if settings.task == "copy"
        else (sum_error, sum_error, 1)
    )

    def stream(steps: int, seed: int, cut: tbptt.Truncation) -> tbptt.FrameStream:
        segments, labels = make(settings, steps, seed)
        return tbptt.FrameStream(
            segments, labels, rows=settings.rows, truncation=cut, shuffle=False
        )

    several = 20 * settings.longest  # steps, so that some are remembered across the longest lag
    training = stream(min(settings.steps, max(2000, several)), settings.seed, truncation)
    inputs = SYMBOLS + 1 if settings.task == "copy" else 2
    model = common.build_model(settings, inputs, outputs, loss, metrics={FIGURE: judge})
    windows = settings.steps // truncation.nominal_length
    windows = min(windows, settings.max_windows or windows)
    optimizer, _ = common.build_optimizer(settings, windows)
    trainer = tbptt.Trainer(model, optimizer, seed=settings.seed, jit_compile=settings.jit_compile)
    start = tbptt.RunState(trainer.initial_loop_state(settings.rows))
    progress = tbptt.Progress(settings.rows * truncation.nominal_length, loss_name=f"{cut}: loss")
    feed = tbptt.open_feed(training, settings.windows_per_call)
    actions = [tbptt.EveryCall(progress)]
    tbptt.train(trainer, feed, start, windows=windows, actions=actions, stop=stop)
    if trainer.windows_seen < windows:
        raise experiment.UnfinishedError(
            f"--max_minutes are over while windows of {cut} are trained; figures of other windows "
            "are saved. The same command goes on with this one."
        )
    testing = stream(
        max(400, several), settings.seed + 1, tbptt.Truncation(truncation.window_length)
    )
    evaluate = tbptt.Evaluator(model, testing, jit_compile=settings.jit_compile)
    return evaluate().metrics[FIGURE]


def compare(settings: Settings, claim: experiment.Claim, cuts: Sequence[str]) -> dict[str, float]:
    """Returns the figure of each of the cuts; figures that an earlier process found are read.

    Raises:
      UnfinishedError: --max_minutes are over.
    """
    done = claim.folder / "figures.json"
    unread = f"{str(done)!r} does not hold figures of windows. Remove it to find them again."
    figures = experiment.read_object(done, unread) or {}
    if not all(isinstance(figure, int | float) for figure in figures.values()):
        raise experiment.UsageError(unread)
    for cut in cuts:
        if cut not in figures:
            claim.check()
            figures[cut] = learn(settings, cut, stop=lambda: claim.options.seconds_left() < 0)
            experiment.write_file(done, json.dumps(figures))
    return figures


def main(settings: Settings, options: experiment.Options) -> experiment.Result:
    """Trains with each of the cuts and prints a table of their figures."""
    began = time.monotonic()
    with experiment.usage_errors():
        cuts = settings.cuts.split(",")
        if options.profile_windows:
            raise ValueError("--profile_windows has no effect here. Leave it out.")
        if experiment.replicas_of(options, settings.rows).count > 1:
            raise ValueError("This compares windows on one device. Use --strategy=one.")
    name = "repeated wrongly" if settings.task == "copy" else "mean squared error"
    with experiment.Claim(settings, options) as claim:
        figures = compare(settings, claim, cuts)
        result = experiment.write_result(
            settings, claim, metric=name, **figures, seconds=round(time.monotonic() - began, 1)
        )
    experiment.output.tell(f"\n| windows | {name} |\n|---|---|")
    for cut, figure in figures.items():
        experiment.output.tell(f"| {cut} | {figure:.4f} |")
    experiment.output.tell(json.dumps(result))
    return result


if __name__ == "__main__":
    experiment.launch(main, Settings)
