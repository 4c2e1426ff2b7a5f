"""Models polyphonic music: which of 88 keys sound in the next frame, given all frames before.

    python -m experiments.music
    python -m experiments.music --data=JSB_Chorales.npz

The figure is the negative log likelihood of a frame, summed over the keys, in nats, averaged over
all frames but the first of each segment, as in Bai et al. (2018), table 1. Without --data it learns
canons that it makes itself. --data is a file of Boulanger-Lewandowski et al. (2012), as `.mat`, or
as `.npz` with `train`, `valid`, `test`: packed bits of frames, `np.packbits(frames, axis=1)`, and
`train_len`, ...: the lengths of the segments. `tools.sample --midi=FILE` lets the trained model go
on with a piece of the test part, or with a MIDI file.
"""

import dataclasses

import numpy as np

import tbptt
from experiments import common
from tbptt import experiment
from tbptt.experiment import setting
from tbptt.losses import binary_cross_entropy
from tbptt.streams.arrays import Archive, check_lengths, check_numbers
from tbptt.streams.files import DataError, regular_file

PARTS = ("train", "valid", "test")
EXPECTED = (
    "an .npz file of train, valid and test, frames one segment after another, and train_len, "
    "valid_len and test_len, the lengths of the segments"
)


@dataclasses.dataclass(frozen=True)
class Settings(common.CommonSettings):
    """The settings of a music experiment, which decide all numbers of a run."""

    data: str = setting("", "A .npz or .mat file; empty: canons.")
    rows: int = setting(8, "B: rows, streams read side by side.", least=1)
    hidden: int = setting(300, "Units in a layer.", least=1)
    dropout: float = setting(0.5, "Rate of dropout on the layers' outputs.", least=0, below=1)
    input_dropout: float = setting(0.1, "Rate of dropout on the inputs.", least=0, below=1)
    recurrent_dropout: float = setting(
        0.2, "Rate of dropout from step to step, one mask a window.", least=0, below=1
    )
    learning_rate: float = setting(5e-3, "Peak of the schedule: warm-up, then cosine.", least=0)
    max_epochs: int = setting(100, "Epochs to train.", least=1)
    keys: int = setting(88, "Number of keys in a frame.", least=1, used_with={"data": None})


def load(path: str, keys: int) -> dict[str, tbptt.Segments]:
    """Loads training, validation and test segments: frames `[N, keys]` of numbers from 0 to 1.

    Raises:
      ValueError: the file does not exist or has another layout; the message gives the expected one.
    """
    if not path:
        return {part: canons(seed, 60 if part == "train" else 20)
                for seed, part in enumerate(PARTS)}  # fmt: skip
    if path.endswith(".mat"):
        return _from_mat(path, keys)
    archive = Archive(path, EXPECTED)
    archive.require([name for part in PARTS for name in (part, f"{part}_len")])
    segments = {}
    for part in PARTS:
        name = f"{path}: {part}"
        frames = _unpacked(archive.numbers(part, 2), keys, name)
        ends = check_lengths(f"{name}_len", archive[f"{part}_len"], len(frames), least=2)
        segments[part] = tbptt.Segments(frames, ends)
    return segments


def _unpacked(frames: np.ndarray, keys: int, name: str) -> np.ndarray:
    """Returns frames as float32 `[N, keys]`, given packed bits or a number for each key."""
    width, packed = frames.shape[1], -(-keys // 8)
    if frames.dtype == np.uint8 and width == packed and not (width == keys and frames.max() <= 1):
        bits = np.unpackbits(frames, axis=1)
        if bits[:, keys:].any():
            raise DataError(
                f"{name} has sounding keys from number {keys} on. Give as many --keys as it has."
            )
        return bits[:, :keys].astype(np.float32)
    if width != keys:
        raise DataError(
            f"{name} has {width} columns, but with --keys={keys} it must have {keys}, or {packed} "
            "of packed bits, as uint8. Give as many --keys as it has."
        )
    wrong = np.argwhere((frames < 0) | (frames > 1))
    if len(wrong):
        frame, key = wrong[0]
        raise DataError(
            f"{name} is {frames[frame, key]} in frame {frame}, key {key}, but must be from 0 to 1: "
            "whether the key sounds."
        )
    return frames.astype(np.float32)


def _from_mat(path: str, keys: int) -> dict[str, tbptt.Segments]:
    try:
        from scipy import io
    except ImportError:
        raise ValueError("A .mat file needs SciPy: pip install scipy") from None
    regular_file(path, "a .mat file")
    try:
        stored = io.loadmat(path)
        parts = {part: stored[f"{part}data"].ravel() for part in PARTS}
    except Exception as error:  # SciPy's readers raise whatever they meet in a damaged file
        raise DataError(
            f"{path!r} cannot be read ({error!r}). It must be a .mat file with traindata, "
            "validdata and testdata."
        ) from None
    segments = {}
    for part, arrays in parts.items():
        names = [f"{path}: segment {k} of {part}data" for k in range(len(arrays))]
        checked = [check_numbers(n, np.asarray(a), 2) for n, a in zip(names, arrays, strict=True)]
        segments[part] = tbptt.Segments.of(
            [_unpacked(array, keys, name) for name, array in zip(names, checked, strict=True)]
        )
    return segments


def canons(seed: int, count: int, keys: int = 88) -> tbptt.Segments:
    """Makes segments whose second voice repeats the first, a fifth lower, eight frames later."""
    rng = np.random.default_rng(seed)
    segments = []
    for _ in range(count):
        frames = np.zeros([int(rng.integers(40, 120)), keys], np.float32)
        steps = rng.choice([-2, -1, 1, 2], size=len(frames))
        melody = 50 + np.abs((rng.integers(24) + np.cumsum(steps)) % 48 - 24)
        at = np.arange(len(frames))
        frames[at, melody] = 1
        frames[at[8:], melody[:-8] - 7] = 1
        segments.append(frames)
    return tbptt.Segments.of(segments)


def main(settings: Settings, options: experiment.Options) -> experiment.Result:
    """Trains a music model and returns its test negative log likelihood."""
    replicas = experiment.replicas_of(options, settings.rows)
    with experiment.usage_errors():
        segments = load(settings.data, settings.keys)

        def stream(part: str, shuffle: bool) -> tbptt.FrameStream:
            return tbptt.FrameStream(
                segments[part],
                rows=min(settings.rows, len(segments[part])),
                shuffle=shuffle,
                truncation=common.truncation(settings) if shuffle else tbptt.Truncation(64),
                seed=settings.seed,
            )

        training = stream("train", True)
        keys = segments["train"].values.shape[1]
        windows = common.windows_to_train(settings, options, training.windows_per_epoch)
        optimizer, schedule = common.build_optimizer(settings, windows)
        with replicas.scope():
            model = common.build_model(settings, keys, keys, binary_cross_entropy)
            trainer = tbptt.Trainer(
                model, optimizer,
                seed=settings.seed, replicas=replicas, jit_compile=settings.jit_compile,
            )  # fmt: skip
        validation, test = (stream(part, False) for part in ("valid", "test"))
    return experiment.train_and_test(
        settings, options, trainer, training, validation, test,
        windows=windows,
        metric="nats_per_frame",
        schedule=schedule,
        eval_every=settings.eval_every,
        windows_per_call=settings.windows_per_call,
        result={"utilisation": round(training.utilisation, 4)},
    )  # fmt: skip


if __name__ == "__main__":
    experiment.launch(main, Settings)
