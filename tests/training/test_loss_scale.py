"""Loss scaling: it changes no bit, gives way to what overflows, and comes back."""

import functools

import numpy as np
import pytest
import tensorflow as tf

import tbptt
from tbptt import checks, optimizers
from tbptt.testing import assert_same_bits
from tbptt.training.loss_scale import LARGEST, LossScale, divide
from tests.conftest import put_back, values_of
from tests.training.test_loop import (
    Features,
    make_model,
    make_stream,
    nan_in_features,
    run,
)


class Steep(tf.Module):
    """A model whose loss is `steep` times another's."""

    def __init__(self, model, steep):
        super().__init__()
        self.model, self.steep = model, steep

    def initial_state(self, rows):
        return self.model.initial_state(rows)

    def loss(self, window, state, *, training, seed):
        result, state = self.model.loss(window, state, training=training, seed=seed)
        return result._replace(loss=self.steep * result.loss), state


def make_scaled(loss_scale, *, jit=False, steep=1.0, model=None):
    """A trainer of plain SGD; the loss is `steep` times the cross-entropy."""
    return tbptt.Trainer(
        Steep(model or make_model(), steep),
        optimizers.sgd(0.1 / steep),
        loss_scale=loss_scale,
        jit_compile=jit,
    )


@functools.cache
def _first_made(jit):
    trainer = make_scaled(LossScale(8.0, growth_interval=2), jit=jit, model=Features())
    return trainer, values_of(trainer)


def growing(jit):
    """Returns a new trainer whose scale doubles every two windows; it is compiled once."""
    trainer, first_values = _first_made(jit)
    put_back(trainer, first_values)
    return trainer


@pytest.fixture
def as_written():
    """TensorFlow's rewriting of products rounds otherwise where one more stands beside them."""
    before = tf.config.optimizer.get_experimental_options().get("arithmetic_optimization", True)
    tf.config.optimizer.set_experimental_options({"arithmetic_optimization": False})
    yield
    tf.config.optimizer.set_experimental_options({"arithmetic_optimization": before})


@pytest.mark.usefixtures("as_written")
def test_scale_keeps_the_bits(jit):
    """None, 1 and 2**15; clipping and Adam see the gradients themselves. It doubles on the way."""
    trainers, results = [], []
    for loss_scale in (None, LossScale(1.0, growth_interval=2)):
        trainers.append(
            tbptt.Trainer(
                make_model("lstm"),
                optimizers.chain(optimizers.clip_by_global_norm(0.3), optimizers.adam(0.01)),
                loss_scale=loss_scale,
                jit_compile=jit,
            )
        )
    first_values = values_of(trainers[1])
    for trainer, initial in ((trainers[0], None), (trainers[1], 1.0), (trainers[1], 2.0**15)):
        if initial:
            put_back(trainer, first_values)
            trainer.loss_scale.scale.assign(initial)
        reports = []
        run(trainer, make_stream(), 5, 5, actions=[tbptt.EveryCall(reports.append)])
        after = [*trainer.model.trainable_variables, *tf.nest.flatten(trainer.opt_state)]
        results.append([*(v.numpy() for v in after), reports[0].metrics.loss])
        assert initial is None or float(trainer.loss_scale.scale) == 4 * initial
    assert_same_bits(results[1], results[0])
    assert_same_bits(results[2], results[0])


def test_overflow_halves_the_scale_and_skips_the_update(jit):
    """2**110 times a loss as steep as 2**30 is beyond float32, until it has been halved enough."""
    trainer = make_scaled(LossScale(2.0**110), jit=jit, steep=2.0**30)
    first_values = [parameter.numpy() for parameter in trainer.model.trainable_variables]
    run(trainer, make_stream(), 3, 3)
    assert float(trainer.loss_scale.scale) == 2.0**107
    assert int(trainer.loss_scale.good_steps) == 0
    assert_same_bits(trainer.model.trainable_variables, first_values)

    reports = []
    run(trainer, make_stream(), 40, 40, actions=[tbptt.EveryCall(reports.append)])
    metrics = reports[0].metrics
    assert 3 <= metrics.skipped < 30
    assert float(trainer.loss_scale.scale) == 2.0 ** (107 - metrics.skipped)
    assert 0 < int(trainer.loss_scale.good_steps) <= 37 - metrics.skipped
    assert np.isfinite(metrics.loss)
    for parameter, value in zip(trainer.model.trainable_variables, first_values, strict=True):
        assert np.isfinite(parameter).all()
        assert np.any(parameter != value)
    assert trainer.traces == 1


def test_scale_doubles_after_so_many_good_windows_in_a_row(jit):
    """NaN in window 5 halves it and begins the count anew: 2 + 2 + 1 good, 1 bad, 2 good."""
    trainer, scales = growing(jit), []
    loss_scale = trainer.loss_scale
    run(
        trainer,
        nan_in_features(make_stream(), 5),
        8,
        1,
        actions=[tbptt.Every(1, lambda report: scales.append(float(loss_scale.scale)))],
    )
    assert scales == [8.0, 16.0, 16.0, 32.0, 32.0, 16.0, 16.0, 32.0]
    assert int(loss_scale.good_steps) == 0
    assert trainer.traces == 1


def test_grouping_keeps_the_scale(jit):
    """Law 6: it moves inside the call as it moves between calls."""
    results = []
    for windows_per_call in (8, 1):
        trainer = growing(jit)
        run(trainer, nan_in_features(make_stream(), 4), 8, windows_per_call)
        results.append(values_of(trainer))
    assert_same_bits(*results)


def test_scale_stays_within_its_range():
    loss_scale = LossScale(1.0, growth_interval=1)
    loss_scale.update(tf.constant(False))
    assert float(loss_scale.scale) == 1.0
    loss_scale = LossScale(LARGEST, growth_interval=1)
    loss_scale.update(tf.constant(True))
    assert float(loss_scale.scale) == LARGEST


def test_variables_are_the_trainers_and_no_parameters():
    """What a checkpoint of the trainer finds."""
    trainer = make_scaled(LossScale())
    found = {id(variable) for variable in trainer.variables}
    assert {id(trainer.loss_scale.scale), id(trainer.loss_scale.good_steps)} <= found
    assert trainer.loss_scale.trainable_variables == ()
    assert float(trainer.loss_scale.scale) == 2.0**15
    assert make_scaled(None).loss_scale is None


@pytest.mark.parametrize("dtype", [tf.float16, tf.float32, tf.float64])
def test_dividing_keeps_dtype_and_what_is_not_finite(dtype):
    gradient = tf.constant([1024.0, -np.inf, np.nan], dtype)
    divided = divide(gradient, tf.constant(2.0**20))
    assert divided.dtype == dtype
    np.testing.assert_array_equal(divided, np.array([2.0**-10, -np.inf, np.nan]))


@pytest.mark.parametrize("initial", [1000.0, 0.5, 0.0, 2.0**127, np.inf, np.nan])
def test_initial_that_is_no_power_of_two_in_range_is_refused(initial):
    message = rf"initial \({initial}\) must be a power of two from 1 to 2\*\*126"
    with pytest.raises(ValueError, match=message.replace("+", r"\+")):
        LossScale(initial)


def test_growth_interval_below_one_is_refused():
    with pytest.raises(ValueError, match=r"growth_interval \(0\) must be at least 1"):
        LossScale(growth_interval=0)


@pytest.mark.parametrize(
    ("compute_dtype", "dtype"),
    [(None, tf.float32), (tf.float32, tf.float32), (tf.float64, tf.float64)],
)
def test_compute_dtype_of_the_parameters_is_no_other(compute_dtype, dtype):
    assert checks.check_compute_dtype(compute_dtype, dtype) is None


@pytest.mark.parametrize(
    ("compute_dtype", "dtype"),
    [(tf.float64, tf.float32), (tf.bfloat16, tf.float64), (tf.int32, tf.float32)],
)
def test_compute_dtype_that_does_not_go_with_the_parameters_is_refused(compute_dtype, dtype):
    message = rf"compute_dtype \({compute_dtype.name}\) must be the parameters' own \({dtype.name}"
    with pytest.raises(ValueError, match=message):
        checks.check_compute_dtype(compute_dtype, dtype)


def test_float16_products_are_refused_without_a_gpu(monkeypatch):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    message = r"compute_dtype \(float16\) needs a GPU, .* Use bfloat16 or float32"
    with pytest.raises(ValueError, match=message):
        checks.check_compute_dtype(tf.float16, tf.float32)
    assert checks.check_compute_dtype(tf.bfloat16, tf.float32) == tf.bfloat16
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [kind])
    assert checks.check_compute_dtype(tf.float16, tf.float32) == tf.float16
