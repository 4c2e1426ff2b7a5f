"""Optimizers against closed forms written in NumPy, step by step; schedules; chains."""

import math

import numpy as np
import pytest
import tensorflow as tf

from tbptt import optimizers
from tbptt.optimizers.clipping import global_norm
from tbptt.optimizers.sgd import trace
from tbptt.testing import assert_close
from tbptt.training.window import apply_update

RATE = 0.05
STEPS = 5


def numpy_sgd(p, gradients):
    for g in gradients:
        p = p - RATE * g
    return p


def numpy_momentum(p, gradients, nesterov=False):
    m = np.zeros_like(p)
    for g in gradients:
        m = 0.9 * m + g
        p = p - RATE * (g + 0.9 * m if nesterov else m)
    return p


def numpy_rmsprop(p, gradients):
    nu = np.zeros_like(p)
    for g in gradients:
        nu = 0.99 * nu + 0.01 * g**2
        p = p - RATE * g / (np.sqrt(nu) + 1e-8)
    return p


def numpy_adam(p, gradients, decay=0.0):
    mu, nu = np.zeros_like(p), np.zeros_like(p)
    for n, g in enumerate(gradients, start=1):
        mu = 0.9 * mu + 0.1 * g
        nu = 0.999 * nu + 0.001 * g**2
        direction = mu / (1 - 0.9**n) / (np.sqrt(nu / (1 - 0.999**n)) + 1e-8)
        p = p - RATE * (direction + (decay * p if p.ndim > 1 else 0.0))
    return p


OPTIMIZERS = {
    "sgd": (optimizers.sgd(RATE), numpy_sgd),
    "momentum": (optimizers.sgd(RATE, momentum=0.9), numpy_momentum),
    "nesterov": (
        optimizers.sgd(RATE, momentum=0.9, nesterov=True),
        lambda p, g: numpy_momentum(p, g, nesterov=True),
    ),
    "rmsprop": (optimizers.rmsprop(RATE), numpy_rmsprop),
    "adam": (optimizers.adam(RATE), numpy_adam),
    "adamw": (
        optimizers.adamw(RATE, weight_decay=0.3),
        lambda p, g: numpy_adam(p, g, decay=0.3),
    ),
    "accumulate": (  # of five windows the last one waits
        optimizers.accumulate(2, optimizers.adam(RATE)),
        lambda p, g: numpy_adam(p, [(g[0] + g[1]) / 2, (g[2] + g[3]) / 2]),
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [tf.float32, tf.float64], ids=["float32", "float64"])
def test_optimizer_equals_its_equations(name, dtype, jit):
    optimizer, equations = OPTIMIZERS[name]
    rng = np.random.default_rng(0)
    first = {"matrix": rng.normal(size=[2, 3]), "vector": rng.normal(size=[4])}
    gradients = [
        {key: rng.normal(size=value.shape) for key, value in first.items()} for _ in range(STEPS)
    ]
    cast = lambda nest: tf.nest.map_structure(lambda x: tf.constant(x, dtype), nest)  # noqa: E731
    parameters = cast(first)
    state = optimizer.init(parameters)
    update = tf.function(optimizer.update, autograph=False, jit_compile=jit)
    for step, gradient in enumerate(gradients):
        updates, state = update(cast(gradient), state, parameters, tf.constant(step, tf.int64))
        parameters = tf.nest.map_structure(tf.add, parameters, updates)
    assert update.experimental_get_tracing_count() == 1
    for key, value in first.items():
        expected = equations(value, [gradient[key] for gradient in gradients])
        np.testing.assert_allclose(parameters[key], expected, **(dict(rtol=2e-5, atol=2e-6)))


def test_clip_by_global_norm():
    clip = optimizers.clip_by_global_norm(2.5)
    long = [tf.constant([3.0, 0.0]), tf.constant([[4.0]])]
    short = [tf.constant([0.3, 0.0]), tf.constant([[0.4]])]
    assert_close(clip.update(long, (), None, 0)[0], [np.float32([1.5, 0]), np.float32([[2.0]])])
    assert_close(clip.update(short, (), None, 0)[0], short)
    zero = [tf.zeros([2])]
    assert_close(clip.update(zero, (), None, 0)[0], zero)


NORMS = {
    "huge": ([3e20, -4e20], np.float32),
    "tiny": ([3e-25, 4e-25], np.float32),
    "far apart": ([1e20, 1e-25, 3.0], np.float32),
    "half": ([300.0, 400.0], np.float16),
    "zero": ([0.0, 0.0], np.float32),
    "double": ([3e200, 4e200], np.float64),
}


@pytest.mark.parametrize("name", NORMS)
def test_global_norm_does_not_leave_the_range_of_its_type(name, jit):
    values, dtype = NORMS[name]
    nest = {"a": tf.constant([values], dtype), "b": tf.constant(values[:1], dtype)}
    norm = tf.function(global_norm, autograph=False, jit_compile=jit)(nest)
    expected = math.hypot(*values, values[0])
    np.testing.assert_allclose(norm, expected, rtol=1e-6)
    if expected:
        clip = optimizers.clip_by_global_norm(1e-3 * expected)
        clipped, _ = clip.update(nest, (), None, 0)
        tolerance = dict(rtol=1e-3 if dtype == np.float16 else 1e-6, atol=1e-37)
        np.testing.assert_allclose(clipped["a"], 1e-3 * np.float64([values]), **tolerance)


def test_global_norm_has_the_bits_of_the_plain_sum(jit):
    """Where nothing leaves the range nothing is scaled."""
    rng = np.random.default_rng(0)
    nest = [tf.constant(rng.normal(size=shape), tf.float32) for shape in ([9, 70], [5], [300])]
    run = lambda f: tf.function(f, autograph=False, jit_compile=jit)(nest)  # noqa: E731
    plain = run(lambda nest: tf.sqrt(tf.add_n([tf.reduce_sum(u * u) for u in nest])))
    assert run(global_norm).numpy() == plain.numpy()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_global_norm_of_what_is_not_finite_is_not_finite(value, jit):
    run = tf.function(global_norm, autograph=False, jit_compile=jit)
    assert not np.isfinite(run([tf.constant([1.0, value, 2.0]), tf.ones([3])]))


@pytest.mark.parametrize("name", ["adam", "rmsprop"])
def test_one_huge_gradient_does_not_stop_a_parameter_for_ever(name):
    """Its square is infinite, and so would be the running mean of squares."""
    optimizer = OPTIMIZERS[name][0]
    parameters = [tf.zeros([2])]
    state = optimizer.init(parameters)
    for step in range(3):
        gradient = [tf.constant([1e20 if step == 0 else 1e18, 1.0])]
        updates, state = optimizer.update(gradient, state, parameters, tf.constant(step, tf.int64))
        assert np.all(np.isfinite(updates[0]))
        assert np.all(updates[0] < -1e-4)
        assert all(np.isfinite(slot).all() for slot in tf.nest.flatten(state))


@pytest.mark.parametrize("name", ["adam", "rmsprop"])
@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16], ids=["float16", "bfloat16"])
def test_half_precision_parameters_have_means_in_float32(name, dtype):
    """Of squares of 1e-3 and 300, which float16 cannot hold."""
    optimizer, equations = OPTIMIZERS[name]
    gradients = [np.array([1e-3, 300.0, 0.5])] * 3
    state, moved = optimizer.init([tf.zeros([3], dtype)]), np.zeros(3)
    for step, gradient in enumerate(gradients):
        given = [tf.constant(gradient, dtype)]
        updates, state = optimizer.update(given, state, given, tf.constant(step, tf.int64))
        assert updates[0].dtype == dtype
        moved += updates[0].numpy().astype(float)
    np.testing.assert_allclose(moved, equations(np.zeros(3), gradients), rtol=2e-2)


def test_clip_by_value():
    clip = optimizers.clip_by_value(1.0)
    assert_close(
        clip.update([tf.constant([-5.0, 0.5, 3.0])], (), None, 0)[0], [np.float32([-1, 0.5, 1])]
    )


def test_chain_applies_in_order_and_keeps_states_apart():
    chained = optimizers.chain(optimizers.clip_by_value(1.0), trace(0.5), optimizers.sgd(0.1))
    parameters = [tf.zeros([1])]
    state = chained.init(parameters)
    assert len(state) == 3
    for expected in (-0.1, -0.15):
        updates, state = chained.update([tf.constant([7.0])], state, parameters, 0)
        assert_close(updates, [np.float32([expected])])


@pytest.mark.parametrize("chained", [False, True])
def test_accumulated_windows_count_by_their_own_rates(chained):
    """The mean of gradients, each times the rate of its window, and not times that of the last."""
    optimizer = optimizers.accumulate(2, optimizers.sgd(1.0))
    if chained:
        optimizer = optimizers.chain(optimizer, optimizers.clip_by_value(100.0))
    parameter = tf.Variable([0.0])
    opt_state = tf.nest.map_structure(tf.Variable, optimizer.init([tf.zeros([1])]))
    moved = []
    for gradient, scale in ((3.0, 0.5), (5.0, 2.0), (1.0, 1.0), (1.0, 3.0)):
        apply_update(
            optimizer,
            [parameter],
            opt_state,
            [tf.constant([gradient])],
            tf.zeros([], tf.int64),
            accept=tf.constant(True),
            scale=tf.constant(scale),
        )
        moved.append(float(parameter[0]))
    assert moved == [0.0, -5.75, -5.75, -7.75]


def values(schedule, steps):
    return [float(schedule(tf.constant(step, tf.int64))) for step in steps]


def test_warmup_cosine():
    rate = optimizers.warmup_cosine(2.0, warmup_steps=4, total_steps=12, floor=0.5)
    expected = [0.5, 1.0, 1.5, 2.0] + [
        0.5 + 1.5 * (1 + math.cos(math.pi * k / 8)) / 2 for k in range(9)
    ]
    np.testing.assert_allclose(values(rate, range(13)), expected, rtol=1e-6)
    assert values(rate, [100]) == [0.5]
    assert values(optimizers.warmup_cosine(2.0, 0, 1), [0]) == [2.0]


def test_epoch_decay_falls_where_the_ptb_tutorial_has_it():
    """lr_decay ** max(i + 1 - max_epoch, 0), small: 4 epochs at 1.0, then halves."""
    rate = optimizers.epoch_decay(1.0, 0.5, constant_epochs=4, windows_per_epoch=2323)
    at_starts = values(rate, [epoch * 2323 for epoch in range(13)])
    assert at_starts == [0.5 ** max(epoch + 1 - 4, 0) for epoch in range(13)]
    assert values(rate, [4 * 2323 - 1, 4 * 2323]) == [1.0, 0.5]


def test_schedule_goes_by_the_step_it_is_given():
    optimizer = optimizers.sgd(optimizers.epoch_decay(1.0, 0.5, 1, 10))
    for step, expected in ((9, -1.0), (10, -0.5)):
        step = tf.constant(step, tf.int64)
        assert_close(optimizer.update([tf.ones([1])], (), None, step)[0], [np.float32([expected])])


def test_nesterov_without_momentum_is_refused():
    with pytest.raises(ValueError, match=r"nesterov \(True\) has no effect with momentum \(0.0\)"):
        optimizers.sgd(0.1, nesterov=True)


@pytest.mark.parametrize(
    "make",
    [
        lambda: optimizers.clip_by_global_norm(0.0),
        lambda: optimizers.clip_by_value(-1.0),
        lambda: optimizers.sgd(0.1, momentum=1.0),
        lambda: optimizers.adam(0.1, b1=1.0),
        lambda: optimizers.adam(0.1, b2=-0.1),
        lambda: optimizers.rmsprop(0.1, decay=1.5),
        lambda: optimizers.adamw(0.1, weight_decay=-1.0),
        lambda: optimizers.warmup_cosine(1.0, 10, 5),
        lambda: optimizers.warmup_cosine(1.0, -1, 5),
        lambda: optimizers.epoch_decay(1.0, 0.5, 1, 0),
        lambda: optimizers.accumulate(0, optimizers.sgd(0.1)),
    ],
)
def test_settings_out_of_range_are_refused(make):
    with pytest.raises(ValueError, match="must be"):
        make()
