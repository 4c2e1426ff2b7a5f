"""Every stream under every truncation and every loss, against a plain walk over the data.

The walk knows of no rows and no windows: it goes over documents, sequences or lines one by one, and
lists what is read and what is to be predicted from it. Each such pair must be scored exactly once,
and the loss of all windows must be the sum over the walk, computed by NumPy in float64.
"""

import numpy as np
import pytest
import tensorflow as tf

import tbptt
from tbptt import losses
from tbptt.training.evaluate import Evaluator
from tests.streams.test_streams import (
    DAYS,
    LENGTHS,
    ROWS,
    SERIES,
    STEPS,
    STREAMS,
    TOKENS,
    TRUNCATIONS,
    VOCABULARY,
    make,
)

SEGMENTS = np.split(TOKENS, np.cumsum(LENGTHS)[:-1])


def text(tokens):
    return [(tokens[i], [tokens[i + 1]]) for i in range(len(tokens) - 1)]


def kept_of_rows(truncation):
    """A text in rows, each without what does not fill a whole window at its end."""
    length = (len(TOKENS) - 1) // ROWS
    step = TRUNCATIONS[truncation].get("stride", STEPS)
    kept = length if "jitter" in TRUNCATIONS[truncation] else length // step * step
    return [
        (TOKENS[i], [TOKENS[i + 1]])
        for row in range(ROWS)
        for i in range(row * length, row * length + kept)
    ]


def after_an_offset(first):
    """A text from the token that an epoch begins with: rows of equal length, to its end."""
    begin = int(np.flatnonzero(first == TOKENS)[0])
    assert begin < STEPS
    length = -(-(len(TOKENS) - 1 - (STEPS - 1)) // ROWS)
    return text(TOKENS[begin : begin + ROWS * length + 1])


def series(horizon, columns, path):
    """Lines of a stretch without a gap, and what comes `horizon` lines later, if it is there."""
    pairs = []
    for line, now in enumerate(SERIES.values):
        ahead = range(1, horizon + 1) if path else [horizon]
        if line + horizon >= len(DAYS) or (DAYS[line + horizon] - DAYS[line]).astype(int) > horizon:
            continue
        target = [SERIES.values[line + h, c] for h in ahead for c in columns]
        if not np.isnan(target).any():
            pairs.append((np.nan_to_num(now[0]), target))
    return pairs


WALKS = {
    "contiguous": lambda cut, first: text(TOKENS),
    "contiguous-drop": lambda cut, first: kept_of_rows(cut),
    "contiguous-offset": lambda cut, first: after_an_offset(first),
    "contiguous-rotate": lambda cut, first: text(TOKENS),
    "documents": lambda cut, first: [pair for segment in SEGMENTS for pair in text(segment)],
    "documents-boundary": lambda cut, first: [
        pair for segment in SEGMENTS for pair in text([0, *segment, 0])
    ],
    "documents-whole": lambda cut, first: [pair for segment in SEGMENTS for pair in text(segment)],
    "frames-next": lambda cut, first: [
        (now, [then, then]) for segment in SEGMENTS for now, (then,) in text(segment)
    ],
    "frames-labels": lambda cut, first: [(token, [token]) for token in TOKENS],
    "frames-sequences": lambda cut, first: [
        (segment[-1], [label]) for segment, label in zip(SEGMENTS, TOKENS, strict=False)
    ],
    "series": lambda cut, first: 2 * series(1, [0, 1], path=False),
    "series-ahead": lambda cut, first: series(3, [1], path=False),
    "series-path": lambda cut, first: series(2, [0, 1], path=True),
}

# name: the loss; outputs [N, ...] of inputs [N] and the width of a target; targets as the loss
# takes them; the same loss in NumPy.
LOSSES = {
    "cross_entropy": (
        losses.cross_entropy,
        lambda x, width: np.sin(np.outer(x + 1.0, np.arange(VOCABULARY))),
        lambda targets: targets[:, 0].astype(np.int32),
        lambda out, t: np.log(np.exp(out).sum(1)) - out[np.arange(len(t)), t],
    ),
    "binary_cross_entropy": (
        losses.binary_cross_entropy,
        lambda x, width: np.cos(np.outer(x, np.arange(1, width + 1))),
        lambda targets: targets % 2,
        lambda out, t: (np.log(1 + np.exp(out)) - t * out).sum(1),
    ),
    "squared_error": (
        losses.squared_error,
        lambda x, width: np.cos(np.outer(x, np.arange(1, width + 1))),
        lambda targets: targets / 100,
        lambda out, t: ((out - t) ** 2).mean(1),
    ),
    "absolute_error": (
        losses.absolute_error,
        lambda x, width: np.cos(np.outer(x, np.arange(1, width + 1))),
        lambda targets: targets / 100,
        lambda out, t: np.abs(out - t).mean(1),
    ),
    "gaussian": (
        losses.gaussian_nll,
        lambda x, width: np.cos(np.outer(x, np.arange(1, 2 * width + 1))),
        lambda targets: targets / 100,
        lambda out, t: (
            ((t - out[:, : t.shape[1]]) / np.exp(out[:, t.shape[1] :])) ** 2 / 2
            + out[:, t.shape[1] :]
            + np.log(2 * np.pi) / 2
        ).sum(1),
    ),
}


def flat(windows):
    """Inputs `[N]`, the first of each vector, targets `[N, width]` and weight `[N]`."""
    count = int(np.prod(windows.targets.shape[:3]))
    weight = np.ones(count) if windows.weight is None else windows.weight.reshape(count)
    inputs = windows.inputs.reshape(count, -1)[:, 0].astype(np.float64)
    return inputs, windows.targets.reshape(count, -1).astype(np.float64), weight


def test_no_stream_is_left_out():
    assert set(WALKS) == set(STREAMS)


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("truncation", TRUNCATIONS)
def test_each_target_is_scored_once_and_the_losses_are_the_walks(stream, truncation):
    made = make(stream, truncation)
    for epoch in (0, 1):
        windows, _ = made.windows(tbptt.Cursor(epoch, 0), made.windows_per_epoch)
        first = windows.inputs[(0, made.truncation.look_back, 0)]
        walk = WALKS[stream](truncation, first)
        x = np.array([now for now, _ in walk], np.float64)
        y = np.array([then for _, then in walk], np.float64)
        inputs, targets, weight = flat(windows)
        assert set(weight) <= {0.0, 1.0}
        scored = weight > 0
        found = np.column_stack([inputs, targets])[scored]
        expected = np.column_stack([x, y])
        np.testing.assert_array_equal(found[np.lexsort(found.T)], expected[np.lexsort(expected.T)])
        for name, (loss, outputs_of, targets_of, by_hand) in LOSSES.items():
            outputs, wanted = outputs_of(inputs, targets.shape[1]), targets_of(targets)
            if wanted.dtype == np.float64:
                wanted = wanted.astype(np.float32)
            each = loss(tf.constant(outputs, tf.float32), tf.constant(wanted))
            loss_sum, weight_sum = losses.weighted_sum(each, tf.constant(weight, tf.float32))
            by_walk = by_hand(outputs_of(x, y.shape[1]), targets_of(y)).sum()
            assert weight_sum == len(walk)
            np.testing.assert_allclose(loss_sum, by_walk, rtol=2e-5, err_msg=name)


class Plain(tf.Module):
    """Predicts from what it reads at a step, and remembers nothing."""

    def initial_state(self, rows):
        return tf.zeros([rows, 1])

    def loss(self, window, state, *, training, seed):
        x = tf.cast(window.inputs, tf.float32)
        x = x if x.shape.rank == 2 else x[..., 0]
        width = 1 if window.targets.shape.rank == 2 else window.targets.shape[-1]
        outputs = tf.cos(x[..., None] * tf.range(1.0, 1.0 + width))
        return tbptt.WindowLoss(distance(outputs, window.targets)), state


def distance(outputs, targets):
    targets = tf.cast(targets, tf.float32) / 100.0
    targets = targets if targets.shape.rank == 3 else targets[..., None]
    return losses.squared_error(outputs, targets)


@pytest.mark.parametrize("stream", ["contiguous", "documents-boundary", "frames-next", "series"])
def test_an_evaluation_is_the_walk_too(stream):
    found = Evaluator(Plain(), make(stream, "stride"), jit_compile=False)()
    walk = WALKS[stream]("stride", None)
    _, outputs_of, targets_of, by_hand = LOSSES["squared_error"]
    x, y = np.array([now for now, _ in walk]), np.array([then for _, then in walk])
    assert found.weight_sum == len(walk)
    by_walk = by_hand(outputs_of(x, y.shape[1]), targets_of(y)).sum()
    np.testing.assert_allclose(found.loss_sum, by_walk, rtol=2e-5)
