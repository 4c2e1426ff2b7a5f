"""The sampled softmax: what is drawn, what it estimates, and that it only does in training."""

import numpy as np
import pytest
import tensorflow as tf

import tbptt
from tbptt.readouts.sampled import log_uniform_edges
from tbptt.testing import assert_close, assert_same_bits

HIDDEN, VOCABULARY = 3, 12


def make(samples=6, vocabulary=VOCABULARY, **options):
    readout = tbptt.SampledSoftmax(
        HIDDEN, vocabulary, samples=samples, seed=tbptt.make_seed(0), **options
    )
    rng = np.random.default_rng(1)
    readout.exact.b.assign(tf.constant(rng.normal(size=[vocabulary]), readout.exact.b.dtype))
    return readout


def window(vocabulary=VOCABULARY):
    rng = np.random.default_rng(2)
    hidden = tf.constant(rng.normal(size=[3, 2, HIDDEN]), tf.float32)
    return hidden, tf.constant(rng.integers(0, vocabulary, [3, 2]), tf.int32)


@pytest.mark.parametrize("vocabulary", [1, 2, 12, 13, 70_000])
def test_ids_are_drawn_by_the_inverse_of_the_distribution(vocabulary, jit):
    """The search finds what NumPy's finds for the same bits: integers, so exactly."""
    readout = make(samples=min(vocabulary, 1000), vocabulary=vocabulary)
    seed = tbptt.make_seed(5)
    drawn = tf.function(readout.draw, jit_compile=jit, autograph=False)(seed).numpy()
    bits = tf.random.stateless_uniform(
        drawn.shape, seed, minval=None, maxval=None, dtype=tf.uint32, alg="philox"
    ).numpy()
    edges = log_uniform_edges(vocabulary)
    assert edges[-1] == 2**32
    assert (drawn == np.searchsorted(edges, bits.astype(np.int64), side="right")).all()
    assert drawn.min() >= 0
    assert drawn.max() < vocabulary


def test_ids_come_as_often_as_zipf_says():
    readout = make(samples=1000, vocabulary=1000)
    seeds = tbptt.split_seed(tbptt.make_seed(1), 200)
    drawn = np.concatenate([readout.draw(seed) for seed in seeds])
    for v in (0, 1, 10):
        q = np.log((v + 2) / (v + 1)) / np.log(1001)
        assert abs((drawn == v).mean() - q) < 4 * np.sqrt(q * (1 - q) / drawn.size)


def test_estimate_by_hand(jit):
    """Every run_state, every drawn id, one after the other, in float64."""
    readout, (hidden, targets) = make(samples=12), window()
    seed = tbptt.make_seed(4)
    drawn = readout.draw(seed).numpy()
    w, b = readout.exact.w.numpy().astype(np.float64), readout.exact.b.numpy().astype(np.float64)
    q = np.log((np.arange(12) + 2) / (np.arange(12) + 1)) / np.log(13)
    expected = np.zeros([3, 2])
    hits = 0
    for t, row in np.ndindex(3, 2):
        logits = w @ hidden[t, row].numpy() + b
        target = int(targets[t, row])
        z = np.exp(logits[target])
        for v in drawn:
            hits += v == target
            if v != target:
                z += np.exp(logits[v]) / (12 * q[v])
        expected[t, row] = np.log(z) - logits[target]
    assert hits > 0  # and they were left out
    score = tf.function(
        lambda: readout.loss(hidden, targets, training=True, seed=seed),
        jit_compile=jit,
        autograph=False,
    )
    assert_close(score(), expected.astype(np.float32))


def test_the_sum_is_unbiased_and_so_is_its_gradient():
    """E[exp(loss)] is the exact one's, for any S; so is the mean of the gradients of exp(loss).

    Were hits left in, the target's term reweighted, or q another's, this would be far off.
    """
    readout, (hidden, targets) = make(samples=6), window()

    @tf.function(autograph=False)
    def run(training, seed):
        with tf.GradientTape() as tape:
            tape.watch(hidden)
            inverse = tf.exp(readout.loss(hidden, targets, training=training, seed=seed))
            total = tf.reduce_sum(inverse)
        gradients = tape.gradient(total, [hidden, readout.exact.w, readout.exact.b])
        parts = [inverse, *map(tf.convert_to_tensor, gradients)]
        return tf.concat([tf.reshape(part, [-1]) for part in parts], axis=0)

    exact = run(False, None).numpy()
    draws = np.stack([run(True, seed) for seed in tbptt.split_seed(tbptt.make_seed(3), 3000)])
    error = draws.std(axis=0) / np.sqrt(len(draws))
    # The rarest id has 1 in 32 of a window's draws: the mean is normal enough for 5 sigma.
    assert (np.abs(draws.mean(axis=0) - exact) < 5 * error + 1e-5).all()
    assert np.median(error / np.abs(exact)) < 0.03  # so an error of a sixth would be seen


def test_more_samples_come_nearer():
    """The mean gradient of the loss itself, biased as it is, goes to the exact one."""
    hidden, targets = window()
    distances = []
    for vocabulary, samples in ((12, 1), (12, 12)):
        readout = make(samples=samples, vocabulary=vocabulary)

        def gradient(training, seed, readout=readout):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(readout.loss(hidden, targets, training=training, seed=seed))
            return tf.convert_to_tensor(tape.gradient(loss, readout.exact.w))

        run = tf.function(gradient, autograph=False)
        seeds = tbptt.split_seed(tbptt.make_seed(3), 300)
        mean = np.mean([run(True, seed) for seed in seeds], axis=0)
        exact = run(False, None).numpy()
        distances.append(np.linalg.norm(mean - exact) / np.linalg.norm(exact))
    assert distances[1] < 0.1
    assert distances[0] > 3 * distances[1]


def test_the_same_numbers_plain_and_compiled():
    readout, (hidden, targets) = make(samples=12), window()

    def run(seed):
        with tf.GradientTape() as tape:
            tape.watch(hidden)
            loss = readout.loss(hidden, targets, training=True, seed=seed)
        gradients = tape.gradient(loss, [hidden, readout.exact.w, readout.exact.b])
        return loss, [tf.convert_to_tensor(g) for g in gradients]

    compiled = tf.function(run, jit_compile=True, autograph=False)
    plain = tf.function(run, autograph=False)
    for seed in tbptt.split_seed(tbptt.make_seed(2), 5):
        assert_close(compiled(seed), plain(seed))


def test_the_seed_decides():
    readout, inputs = make(), window()
    one, other = tbptt.make_seed(1), tbptt.make_seed(2)
    score = lambda seed: readout.loss(*inputs, training=True, seed=seed)  # noqa: E731
    assert_same_bits(score(one), score(one))
    assert not np.allclose(score(one), score(other))


def test_exact_outside_training(jit):
    readout, (hidden, targets) = make(chunk=5), window()
    score = tf.function(readout.loss, jit_compile=jit, autograph=False)
    expected = tbptt.cross_entropy(readout.logits(hidden), targets)
    assert_close(score(hidden, targets, training=False, seed=tbptt.make_seed(1)), expected)
    assert_close(score(hidden, targets, training=False, seed=None), expected)


def test_training_without_a_seed_is_refused():
    with pytest.raises(ValueError, match=r"needs a seed for that\. Pass seed=, or training=False"):
        make().loss(*window(), training=True, seed=None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(samples=0), r"samples \(0\) must be at least 1 and at most vocabulary_size \(12\)"),
        (dict(samples=13), r"samples \(13\) must be at least 1 and at most vocabulary_size \(12"),
        (dict(chunk=0), r"chunk \(0\) must be at least 1"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)
