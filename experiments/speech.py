"""Classifies spoken words from frames of features, with a decision at every frame.

    python -m experiments.speech
    python -m experiments.speech --data=japanese_vowels.npz
    python -m experiments.speech --data=fsdd_mfcc.npz

The figure is the accuracy of the last decision on the test utterances; beside it stands the
accuracy after a quarter, half and three quarters of each. Without --data it learns rising,
falling and other contours that it makes itself. --data is a `.npz` file of frames one utterance
after another, either with `train`, `train_len`, `train_y`, `test`, `test_len`, `test_y`, or with
`mfcc`, `lengths`, `digit` and `index`, recordings of index 0 to 4 being the test part.
"""

import dataclasses
import time
from typing import Any

import numpy as np
import tensorflow as tf

import tbptt
from experiments import common
from tbptt import experiment
from tbptt.experiment import setting
from tbptt.layers.running_mean import RunningMean
from tbptt.streams.arrays import Archive, check_lengths
from tbptt.streams.files import DataError

TEST_INDEX = 5  # recordings with a smaller index are the test part: the rule of the data's authors
PARTS = ("train", "test")
EXPECTED = (
    "an .npz file of train, train_len, train_y, test, test_len and test_y, or of mfcc, lengths, "
    "digit and index"
)
LAGS = (1, 3)  # frames
SHARES = (0.25, 0.5, 0.75, 1.0)

Part = tuple[tbptt.Segments, np.ndarray]  # utterances, a label each


@dataclasses.dataclass(frozen=True)
class Settings(common.CommonSettings):
    """The settings of a speech experiment, which decide all numbers of a run."""

    data: str = setting("", "A .npz file; empty: contours.")
    deltas: bool = setting(False, "Add the changes since 1 and 3 frames before as features.")
    valid_fraction: float = setting(
        0.1, "Part of the training utterances to validate on; 0: none, keep the last parameters.",
        least=0, below=1,
    )  # fmt: skip
    pooling: bool = setting(True, "Decide by the mean of all outputs so far, not by the last.")
    score: str = setting("every", "Steps at which the label is trained", choices=("last", "every"))
    window_length: int = setting(
        32, "T: steps in a window; the gradient goes no further back.", least=1
    )
    dropout: float = setting(0.3, "Rate of dropout on the layers' outputs.", least=0, below=1)
    input_dropout: float = setting(0.1, "Rate of dropout on the inputs.", least=0, below=1)
    max_epochs: int = setting(40, "Epochs to train.", least=1)


def load(path: str) -> tuple[Part, Part]:
    """Loads the training and the test part: utterances with a label each.

    Raises:
      ValueError: the file does not exist or has another layout; the message gives the expected one.
    """
    if not path:
        return contours(0, 300), contours(1, 100)
    archive = Archive(path, EXPECTED)
    if {"mfcc", "lengths", "digit", "index"} <= set(archive):
        segments = _segments(archive, "mfcc", "lengths")
        labels = _labels(archive, "digit", segments)
        test = archive.numbers("index", 1, integers=True) < TEST_INDEX
        if len(test) != len(segments) or test.all() or not test.any():
            raise DataError(
                f"{path}: index must have one number for each of the {len(segments)} recordings, "
                f"some below {TEST_INDEX}, which are the test part, and some not."
            )
        return _chosen(segments, labels, ~test), _chosen(segments, labels, test)
    archive.require([f"{part}{suffix}" for part in PARTS for suffix in ("", "_len", "_y")])
    parts = []
    for part in PARTS:
        segments = _segments(archive, part, f"{part}_len")
        parts.append((segments, _labels(archive, f"{part}_y", segments)))
    widths = [segments.values.shape[1] for segments, _ in parts]
    if widths[0] != widths[1]:
        raise DataError(
            f"{path}: frames of train have {widths[0]} features, of test {widths[1]}. They must "
            "have the same."
        )
    if (parts[0][1].dtype.kind == "U") != (parts[1][1].dtype.kind == "U"):
        raise DataError(f"{path}: one of train_y and test_y holds texts, the other one numbers.")
    return parts[0], parts[1]


def _segments(archive: Archive, frames: str, lengths: str) -> tbptt.Segments:
    values = archive.numbers(frames, 2)
    name = f"{archive.path}: {lengths}"
    return tbptt.Segments(values, check_lengths(name, archive[lengths], len(values)))


def _labels(archive: Archive, name: str, segments: tbptt.Segments) -> np.ndarray:
    """Reads one label for each utterance, numbers or texts."""
    labels = archive[name]
    if labels.dtype.kind != "U":
        labels = archive.numbers(name, 1)
    if labels.shape != (len(segments),):
        raise DataError(
            f"{archive.path}: {name} has shape {list(labels.shape)}, but there are {len(segments)} "
            "utterances. Give one label for each."
        )
    return labels


def _chosen(segments: tbptt.Segments, labels: np.ndarray, which: np.ndarray) -> Part:
    numbers = np.flatnonzero(which)
    arrays = [segments.values[segments.begins[p] : segments.ends[p]] for p in numbers]
    return tbptt.Segments.of(arrays), labels[numbers]


def split(part: Part, fraction: float, seed: int) -> tuple[Part, Part | None]:
    """Splits off a fraction of the utterances, drawn by the seed, for validation."""
    if not fraction:
        return part, None
    segments, labels = part
    if max(1, round(fraction * len(segments))) == len(segments):
        raise ValueError(
            f"--valid_fraction ({fraction}) of {len(segments)} utterances leaves none to train on. "
            "Use a smaller one, or 0."
        )
    drawn = np.random.default_rng([seed, 9]).permutation(len(segments))
    held = np.isin(np.arange(len(segments)), drawn[: max(1, round(fraction * len(segments)))])
    return _chosen(segments, labels, ~held), _chosen(segments, labels, held)


def contours(seed: int, count: int) -> Part:
    """Makes noisy lines that rise, fall, rise and fall, or stay: 10 to 40 frames of 3 features."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(4, size=count)
    segments = []
    for label in labels:
        x = np.linspace(0, 1, int(rng.integers(10, 41)))
        line = [x, -x, 1 - np.abs(2 * x - 1), 0 * x][label]
        features = line[:, None] * [2.0, -1.0, 0.5] + rng.normal(0, 0.3, [len(x), 3])
        segments.append(features.astype(np.float32))
    return tbptt.Segments.of(segments), labels


def begun(segments: tbptt.Segments, share: float) -> tbptt.Segments:
    """Returns the first `share` of each utterance, one frame at least."""
    lengths = np.maximum(1, np.rint(segments.lengths * share)).astype(np.int64)
    return tbptt.Segments.of(
        [
            segments.values[begin : begin + length]
            for begin, length in zip(segments.begins, lengths, strict=True)
        ]
    )


def with_deltas(segments: tbptt.Segments) -> tbptt.Segments:
    """Appends changes since earlier frames to frames `[N, D]`: `[N, D * (1 + len(LAGS))]`."""
    firsts = np.repeat(segments.begins, segments.lengths)
    at = np.arange(len(firsts))
    changes = [segments.values - segments.values[np.maximum(at - lag, firsts)] for lag in LAGS]
    return tbptt.Segments(np.concatenate([segments.values, *changes], axis=1), segments.ends)


def build_model(settings: Settings, input_size: int, classes: int) -> tbptt.SequenceModel:
    """Builds recurrent layers, a running mean of their outputs if `pooling`, and a readout."""
    seeds = tbptt.split_seed(tbptt.make_seed(settings.seed), 2)
    core = common.build_core(settings, input_size, seeds[0])
    if settings.pooling:
        core = tbptt.Stack([core, RunningMean(core.output_size)])
    return tbptt.SequenceModel(
        core,
        classes,
        tbptt.cross_entropy,
        seed=seeds[1],
        metrics={"accuracy": accuracy},
        dropout_rate=settings.dropout,
        input_dropout_rate=settings.input_dropout,
    )


def accuracy(logits: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
    """Returns 1 where the likeliest class is the target and 0 elsewhere, `[T, B]`."""
    likeliest = tf.argmax(logits, axis=-1, output_type=targets.dtype)
    return tf.cast(likeliest == targets, tf.float32)


def main(settings: Settings, options: experiment.Options) -> experiment.Result:
    """Trains a classifier of utterances and returns its test accuracy."""
    began = time.monotonic()
    replicas = experiment.replicas_of(options, settings.rows)
    with experiment.usage_errors():
        given, test_part = load(settings.data)
        names = np.unique(given[1])
        train_part, valid_part = split(given, settings.valid_fraction, settings.seed)
        with np.errstate(over="ignore", invalid="ignore"):
            mean, deviation = train_part[0].values.mean(0), train_part[0].values.std(0)
        if not np.isfinite(deviation).all():
            raise ValueError(
                f"Feature {np.argmin(np.isfinite(deviation))} has values too large to be "
                "standardised. Replace them."
            )
        standardizer = tbptt.Standardizer(mean, np.where(deviation > 0, deviation, 1.0))

        def stream(part: Part, *, shuffle: bool = False, share: float = 1.0) -> tbptt.FrameStream:
            segments, labels = part
            unknown = np.setdiff1d(labels, names)
            if len(unknown):
                raise ValueError(
                    f"Label {unknown[0].item()!r} is in the test part, but not in training. "
                    "Leave its utterances out, or train on some."
                )
            features = tbptt.Segments(standardizer.apply(segments.values), segments.ends)
            return tbptt.FrameStream(
                begun(with_deltas(features) if settings.deltas else features, share),
                np.searchsorted(names, labels),
                rows=min(settings.rows, len(segments)),
                classes=len(names),
                score=settings.score if shuffle else "last",
                shuffle=shuffle,
                truncation=common.truncation(settings) if shuffle else tbptt.Truncation(32),
                seed=settings.seed,
            )

        training = stream(train_part, shuffle=True)
        feed = tbptt.open_feed(training, settings.windows_per_call, replicas=replicas)
        width = train_part[0].values.shape[1] * (1 + len(LAGS) * settings.deltas)
        windows = common.windows_to_train(settings, options, training.windows_per_epoch)
        optimizer, schedule = common.build_optimizer(settings, windows)
        with replicas.scope():
            model = build_model(settings, width, len(names))
            trainer = tbptt.Trainer(
                model, optimizer,
                seed=settings.seed, replicas=replicas, jit_compile=settings.jit_compile,
            )  # fmt: skip
        validating = None if valid_part is None else stream(valid_part)
        validate = None
        if validating is not None:
            validate = common.figure_of(
                common.evaluator(settings.jit_compile, model, validating, replicas)
            )
        tests = {
            share: tbptt.Evaluator(model, stream(test_part, share=share), jit_compile=False)
            for share in SHARES
        }
        data = experiment.data_of(
            training, *([] if validating is None else [validating]), stream(test_part)
        )
    with experiment.Claim(settings, options, replicas, data=data) as claim:
        fitted = experiment.fit(
            settings, claim, trainer, feed, schedule,
            windows=windows, metric="nats", validate=validate, eval_every=settings.eval_every,
            preprocessing={"standardizer": standardizer, "labels": names.tolist()},
        )  # fmt: skip
        tested = {share: test() for share, test in tests.items()}
        accuracies: dict[str, Any] = {
            f"accuracy_at_{share:.0%}": each.metrics["accuracy"] for share, each in tested.items()
        }
        return experiment.finish(
            fitted, settings, claim, began,
            tested=tested[1.0],
            figure=accuracies["accuracy_at_100%"],
            metric="accuracy",
            valid_metric="nats",
            **accuracies,
            utterances=len(test_part[0]),
            utilisation=round(training.utilisation, 4),
            steps_per_second=round(fitted.tokens_per_second),
        )  # fmt: skip


if __name__ == "__main__":
    experiment.launch(main, Settings)
