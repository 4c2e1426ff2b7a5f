"""One number a step; sums and weights apart."""

import numpy as np
import pytest
import tensorflow as tf

from tbptt import losses
from tbptt.testing import assert_close


def test_cross_entropy_equals_numpy(jit):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=[3, 2, 5]) * 4
    targets = rng.integers(0, 5, [3, 2])
    exp = np.exp(logits - logits.max(-1, keepdims=True))
    probability = np.take_along_axis(exp / exp.sum(-1, keepdims=True), targets[..., None], -1)
    run = tf.function(losses.cross_entropy, jit_compile=jit, autograph=False)
    result = run(tf.constant(logits), tf.constant(targets))
    assert_close(result, -np.log(probability[..., 0]))


def test_losses_of_vectors_equal_numpy(jit):
    rng = np.random.default_rng(0)
    outputs, targets = rng.normal(size=[3, 2, 4]), rng.random([3, 2, 4])
    p = 1 / (1 + np.exp(-outputs))
    log_likelihood = targets * np.log(p) + (1 - targets) * np.log(1 - p)
    both = rng.normal(size=[3, 2, 8])
    z = (targets - both[..., :4]) / np.exp(both[..., 4:])
    density = np.exp(-0.5 * z * z) / np.sqrt(2 * np.pi) / np.exp(both[..., 4:])
    cases = [
        (losses.binary_cross_entropy, outputs, -log_likelihood.sum(-1)),
        (losses.squared_error, outputs, ((outputs - targets) ** 2).mean(-1)),
        (losses.absolute_error, outputs, np.abs(outputs - targets).mean(-1)),
        (losses.gaussian_nll, both, -np.log(density).sum(-1)),
    ]
    for loss, given, expected in cases:
        run = tf.function(loss, jit_compile=jit, autograph=False)
        assert_close(run(tf.constant(given), tf.constant(targets)), expected)


def test_cross_entropy_of_half_precision_is_float32():
    logits = tf.cast(tf.fill([1, 1, 3], 7.0), tf.bfloat16)
    assert_close(
        losses.cross_entropy(logits, tf.zeros([1, 1], tf.int32)), np.float32([[np.log(3)]])
    )


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16], ids=["float16", "bfloat16"])
def test_losses_and_sums_of_half_precision_are_float32(dtype):
    """(300 - 0)^2 is beyond float16, and a count above 256 beyond what bfloat16 tells apart."""
    outputs, targets = tf.fill([1, 1, 2], tf.cast(300.0, dtype)), tf.zeros([1, 1, 2], dtype)
    cases = {
        losses.squared_error: (outputs, targets, 300.0**2),
        losses.absolute_error: (outputs, targets, 300.0),
        losses.binary_cross_entropy: (outputs, targets, 600.0),
        losses.gaussian_nll: (targets, outputs[..., :1], 300.0**2 / 2 + np.log(2 * np.pi) / 2),
    }
    for loss, (given, wanted, expected) in cases.items():
        assert_close(loss(given, wanted), np.float32([[expected]]))
    for weight in (None, tf.ones([300, 11], dtype)):
        total, count = losses.weighted_sum(tf.ones([300, 11], dtype), weight)
        assert (float(total), float(count)) == (3300.0, 3300.0)


def test_weighted_sum_leaves_out_what_weighs_nothing_nan_included():
    loss = tf.constant([[1.0, np.nan], [2.0, 4.0]])
    total, weight = losses.weighted_sum(loss, tf.constant([[1.0, 0.0], [0.5, 1.0]]))
    assert (float(total), float(weight)) == (6.0, 2.5)
    total, weight = losses.weighted_sum(tf.ones([3, 2]), None)
    assert (float(total), float(weight)) == (6.0, 6.0)


def test_reductions():
    assert float(losses.reduce("mean", tf.constant(6.0), tf.constant(4.0), 2)) == 1.5
    assert float(losses.reduce("sum_over_window", tf.constant(6.0), tf.constant(4.0), 2)) == 3.0
    assert float(losses.reduce("mean", tf.constant(0.0), tf.constant(0.0), 2)) == 0.0
    with pytest.raises(ValueError, match=r"reduction \('max'\) must be one of mean, sum_over"):
        losses.reduce("max", tf.constant(0.0), tf.constant(0.0), 2)


def test_perplexity_does_not_overflow():
    assert losses.perplexity(1e6) == float("inf")
