"""The mean of the parameters: what it is over, when it begins, and that looking changes nothing."""

import numpy as np

import tbptt
from tbptt import optimizers
from tbptt.testing import assert_close, assert_same_bits
from tbptt.training.average import NonMonotonic
from tests.training.test_loop import ROWS, make_model, make_stream


def test_mean_is_over_the_windows_since_it_was_begun(jit):
    model = make_model()
    average = tbptt.Average(model)
    trainer = tbptt.Trainer(model, optimizers.sgd(0.5), average=average, jit_compile=jit)
    run_state = tbptt.RunState(trainer.initial_loop_state(ROWS))
    feed = tbptt.ResidentFeed(make_stream(), 4)
    seen = []
    for step in range(1, 7):
        if step == 3:
            average.begin()
        run_state = tbptt.train(trainer, feed, run_state, windows=step)
        seen.append([parameter.numpy() for parameter in model.trainable_variables])
    assert int(average.count) == 4
    assert trainer.traces == 1
    assert_close(
        list(average.means), [np.mean(parts, axis=0) for parts in zip(*seen[2:], strict=True)]
    )
    with average.applied():
        assert_same_bits(model.trainable_variables, average.means)
    assert_same_bits(model.trainable_variables, seen[-1])


def test_average_that_is_not_begun_is_the_parameters():
    model = make_model()
    average = tbptt.Average(model)
    before = [parameter.numpy() for parameter in model.trainable_variables]
    with average.applied():
        assert_same_bits(model.trainable_variables, before)


def test_parameters_come_back_when_looking_fails():
    model = make_model()
    average = tbptt.Average(model)
    average.count.assign(1)
    before = [parameter.numpy() for parameter in model.trainable_variables]
    try:
        with average.applied():
            raise RuntimeError
    except RuntimeError:
        assert_same_bits(model.trainable_variables, before)


def test_a_validation_that_is_not_finite_is_worse_than_any():
    """So the average begins though the first figure was NaN, and where a later one is."""
    for bad in (np.nan, np.inf):
        trigger = NonMonotonic(patience=2)
        figures = (bad, 5.0, 4.0, 3.0, 4.5, 4.4)
        assert [trigger.offer(figure) for figure in figures] == [False] * 5 + [True]
        trigger = NonMonotonic(patience=1)
        assert [trigger.offer(figure) for figure in (3.0, 2.0, bad)] == [False, False, True]
