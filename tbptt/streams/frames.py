"""`FrameStream`: sequences of feature vectors of different lengths, as music or speech."""

import numpy as np

from tbptt import checks
from tbptt.streams.contiguous import fresh
from tbptt.streams.files import DataError
from tbptt.streams.segments import Segments, SegmentStream
from tbptt.streams.truncation import Truncation, truncation_of

SCORES = ("last", "every")


class FrameStream(SegmentStream):
    """Reads sequences of frames on B rows, one after another; see `SegmentStream`.

    The targets are one of

        the next frame            no labels: all frames but the first of each sequence
        a label a frame           labels [N, ...]
        a label a sequence        labels [P]: scored at its last step, or at every step

    Attributes: see `SegmentStream`.

    Example: two sequences with a label each.
      >>> segments = Segments.of([np.ones([2, 3]), np.zeros([3, 3])])
      >>> stream = FrameStream(segments, np.array([7, 8]), rows=1, window_length=5, shuffle=False)
      >>> window, _ = stream.windows(Cursor(), 1)
      >>> window.inputs.shape, window.targets[0, :, 0].tolist(), window.weight[0, :, 0].tolist()
      ((1, 5, 1, 3), [7, 7, 8, 8, 8], [0.0, 1.0, 0.0, 0.0, 1.0])
    """

    def __init__(
        self,
        segments: Segments,
        labels: np.ndarray | None = None,
        *,
        rows: int,
        window_length: int | None = None,
        truncation: Truncation | None = None,
        classes: int | None = None,
        score: str = "last",
        shuffle: bool = True,
        whole: bool = True,
        seed: int = 0,
    ) -> None:
        """Creates a stream on sequences of frames.

        Args:
          segments: frames `[N, D]`; memory maps stay on disk.
          labels: labels of frames or of sequences, see above. None: the next frame is the target.
          rows: B.
          window_length: T, of windows one after another.
          truncation: other windows; instead of `window_length`.
          classes: the number of classes: labels are integers below it. None: no check.
          score: the steps at which a label of a sequence counts: its `last` step or `every` step.
          shuffle: whether the order changes from epoch to epoch.
          whole: whether to keep each sequence on one row, see `SegmentStream`.
          seed: the seed of all randomness.

        Raises:
          ValueError: frames are not finite, labels do not fit, a sequence has one frame and there
            are no labels, or there are more rows than sequences.
        """
        checks.check_shape("frames", segments.values, [None, None])
        checks.check_choice("score", score, SCORES)
        steps = segments.lengths
        if labels is None and steps.min() < 2:
            raise ValueError(
                f"Sequence {steps.argmin()} has one frame, after which there is none to predict. "
                "Leave it out."
            )
        if labels is not None and len(labels) not in (len(segments), len(segments.values)):
            raise ValueError(
                f"There are {len(labels)} labels, but {len(segments)} sequences of "
                f"{len(segments.values)} frames. Give one for each sequence, or one for each frame."
            )
        if labels is not None and classes is not None:
            _check_labels(labels, classes)
        if not isinstance(segments.values, np.memmap):  # a map is checked as it is read
            _check_finite(segments.values, np.arange(len(segments.values)))
        self._segments = segments
        self._labels = labels
        self._a_sequence = labels is not None and len(labels) == len(segments)
        self._every = score == "every"
        super().__init__(
            steps - 1 if labels is None else steps,
            rows=rows,
            truncation=truncation_of(window_length, truncation),
            shuffle=shuffle,
            whole=whole,
            seed=seed,
        )

    def take(
        self, segment: np.ndarray, step: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Reads frames of sequences; raises DataError if one is not finite. See `SegmentStream`."""
        frames = fresh(self._segments.values)
        at = self._segments.begins[segment] + step
        inputs = np.asarray(frames[at], np.float32)
        if isinstance(frames, np.memmap):
            _check_finite(inputs, at)
        if self._labels is None:
            return inputs, np.asarray(frames[at + 1], np.float32), None
        if not self._a_sequence:
            return inputs, _narrow(self._labels[at]), None
        last = None if self._every else (step == self._segments.lengths[segment] - 1)
        weight = None if last is None else last.astype(np.float32)
        return inputs, _narrow(self._labels[segment]), weight


def _narrow(labels: np.ndarray) -> np.ndarray:
    return labels.astype(np.int32 if np.issubdtype(labels.dtype, np.integer) else np.float32)


def _check_labels(labels: np.ndarray, classes: int) -> None:
    wrong = (labels < 0) | (labels >= classes)
    if wrong.any():
        place = np.argwhere(wrong)[0]
        raise ValueError(
            f"Label {place[0]} is {labels[wrong][0]}, but labels must be from 0 to {classes - 1}."
        )


def _check_finite(frames: np.ndarray, places: np.ndarray) -> None:
    fine = np.isfinite(frames).all(axis=-1)
    if not fine.all():
        raise DataError(
            f"Frame {places[~fine][0]} holds NaN or infinity: {frames[~fine][0]}. Leave such "
            "frames out, or replace the values."
        )
