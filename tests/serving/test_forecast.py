"""Forecasts that feed themselves, against processes whose quantiles are known."""

import statistics

import numpy as np
import pytest
import tensorflow as tf

import tbptt
from tbptt.serving.forecast import Forecaster, quantiles
from tbptt.testing import assert_close, assert_same_bits

NORMAL = statistics.NormalDist()
LEVELS = [0.05, 0.25, 0.5, 0.9]
PATHS = 4000


class Autoregression(tf.Module):
    """y(t+1) = a y(t) + b y(t-1) + s e of each column, where y(t-1) is the state."""

    def __init__(self, a, b, s=None):
        super().__init__()
        self.a, self.b = (tf.constant(x, tf.float32) for x in (a, b))
        self.log_s = None if s is None else tf.math.log(tf.constant(s, tf.float32))

    def initial_state(self, rows):
        return tf.zeros([rows, len(self.a)])

    def __call__(self, inputs, state):
        before = tf.concat([state[None], inputs[:-1]], axis=0)
        outputs = self.a * inputs + self.b * before
        if self.log_s is not None:
            spread = self.log_s + tf.zeros_like(outputs)
            outputs = tf.concat([outputs, spread], axis=-1)
        return outputs, inputs[-1]


def closed_form(a, b, last, before, horizon):
    """Mean, and standard deviation over that of one step, of y after 1 to `horizon` steps."""
    means, psi = [before, last], [0.0, 1.0]
    for _ in range(horizon):
        means.append(a * means[-1] + b * means[-2])
        psi.append(a * psi[-1] + b * psi[-2])
    return np.array(means[2:]), np.sqrt(np.cumsum(np.square(psi[1:-1])))


@pytest.mark.parametrize(
    ("a", "b"), [([0.8, -0.5], [0.0, 0.0]), ([0.5, 1.2], [0.4, -0.5])], ids=["AR(1)", "AR(2)"]
)
@pytest.mark.parametrize("jit_compile", [False, True])
def test_quantiles_are_those_of_the_process(a, b, jit_compile):
    """Within four times the sampling error of a quantile, sqrt(p (1 - p) / P) / density."""
    s, horizon = [0.5, 2.0], 6
    standardizer = tbptt.Standardizer(np.array([10.0, -3.0]), np.array([3.0, 0.1]))
    history = np.array([[7.0, -3.2], [12.0, -2.9], [13.0, -3.1]])
    forecaster = Forecaster(
        Autoregression(a, b, s), 2, standardizer=standardizer, paths=PATHS, jit_compile=jit_compile
    )
    paths = forecaster(history, horizon, seed=1)
    found = quantiles(paths, LEVELS)
    assert paths.shape == (PATHS, horizon, 2)
    assert found.shape == (horizon, 4, 2)
    before, last = standardizer.apply(history)[-2:]
    for c in range(2):
        mean, spread = closed_form(a[c], b[c], last[c], before[c], horizon)
        mean = standardizer.undo(mean[:, None], [c])[:, 0]
        spread = spread * s[c] * standardizer.deviation[c]
        for q, level in enumerate(LEVELS):
            z = NORMAL.inv_cdf(level)
            error = np.sqrt(level * (1 - level) / PATHS) / NORMAL.pdf(z) * spread
            assert np.all(np.abs(found[:, q, c] - (mean + z * spread)) < 4 * error)
    correlation = np.corrcoef(paths[:, -1].T)[0, 1]
    assert abs(correlation) < 4 / np.sqrt(PATHS)  # the columns' noise is independent


def test_residuals_are_drawn_with_replacement():
    """Skewed errors: their quantiles after one step, their mean and variance after more."""
    a, horizon, rng = 0.7, 5, np.random.default_rng(0)
    residuals = rng.exponential(2.0, [500, 1]) * [[1.0, -1.0]]  # two columns that go together
    standardizer = tbptt.Standardizer(np.array([1.0, 5.0]), np.array([2.0, 4.0]))
    model = Autoregression([a, a], [0.0, 0.0])
    options = dict(standardizer=standardizer, residuals=residuals, paths=PATHS, jit_compile=False)
    paths = Forecaster(model, 2, **options)([[3.0, 9.0]], horizon, seed=2)
    one_step = a * 1.0 + standardizer.apply(np.array([[1.0, 5.0]]))
    begin = standardizer.undo(one_step, [0, 1])[0]
    assert_close(np.float32(paths[:, 0].max(axis=0)), np.float32(begin + residuals.max(axis=0)))
    assert len(np.unique(np.float32(paths[:, 0, 0]))) == pytest.approx(500, abs=2)
    errors = np.float32(paths[:, 0] - begin)
    assert_close(errors[:, 0], -errors[:, 1])  # of one line
    for c in range(2):
        _, spread = closed_form(a, 0.0, 0.0, 0.0, horizon)
        expected = spread * residuals[:, c].std()
        assert np.all(np.abs(paths[..., c].std(axis=0) / expected - 1) < 4 * 1.5 / np.sqrt(PATHS))
        drift = np.cumsum(a ** np.arange(horizon)) * residuals[:, c].mean()
        mean = standardizer.undo((a ** np.arange(1, horizon + 1))[:, None], [c])[:, 0] + drift
        error = expected / np.sqrt(PATHS)
        assert np.all(np.abs(paths[..., c].mean(axis=0) - mean) < 4 * error)


@pytest.mark.parametrize("changes", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_inputs_are_those_of_the_stream(changes, masked):
    """Of the history, and of the lines that are drawn, which the model reads next."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=[9, 2])
    values[[2, 3, 5], [0, 1, 0]] = np.nan
    series = tbptt.Series(values, ("x", "y"))
    standardizer = tbptt.Standardizer.of(series)

    seen = []

    class Recorder(Autoregression):
        def __call__(self, inputs, state):
            tf.py_function(lambda x: seen.append(x.numpy()), [inputs], [])
            return super().__call__(inputs[..., :2], state)

    model = Recorder([0.5, 0.5], [0.1, 0.1], [0.3, 0.3])
    options = dict(changes=changes, masked=masked, paths=1, jit_compile=False)
    forecaster = Forecaster(model, 2, standardizer=standardizer, **options)
    path = forecaster(values, 4)[0]
    whole = tbptt.Series(np.concatenate([values, path, path[-1:]]), ("x", "y"))
    stream = tbptt.SeriesStream(
        [whole], standardizer, rows=1, window_length=13, masked=masked, changes=changes
    )
    window, _ = stream.windows(tbptt.Cursor(), 1)
    assert_close(np.concatenate(seen), window.inputs[0])


def test_a_state_goes_on_and_a_seed_repeats():
    model = Autoregression([0.5], [0.4], [0.1])
    forecaster = Forecaster(model, 1, paths=20, jit_compile=False)
    whole = forecaster([[1.0], [2.0], [3.0]], 4, seed=3)
    state = tf.constant([[2.0]])
    assert_same_bits(forecaster([[3.0]], 4, seed=3, state=state), whole)
    assert not np.array_equal(forecaster([[1.0], [2.0], [3.0]], 4, seed=4), whole)


def test_a_trained_forecaster_covers_the_process():
    """An LSTM trained with gaussian_nll on an AR(1): about 80 % of what follows is in its 80 %."""
    rng, a = np.random.default_rng(0), 0.9
    noise = rng.normal(size=[3000, 1])
    values = np.zeros([3000, 1])
    for t in range(1, 3000):
        values[t] = a * values[t - 1] + noise[t]
    series = tbptt.Series(values[:2500] + 20, ("x",))
    standardizer = tbptt.Standardizer.of(series)
    stream = tbptt.SeriesStream([series], standardizer, rows=20, window_length=25)
    seeds = tbptt.split_seed(tbptt.make_seed(0), 2)
    core = tbptt.LSTM(1, 8, seed=seeds[0])
    model = tbptt.SequenceModel(core, 2, tbptt.gaussian_nll, seed=seeds[1])
    trainer = tbptt.Trainer(model, tbptt.optimizers.adam(2e-2), jit_compile=False)
    place = tbptt.RunState(trainer.initial_loop_state(20))
    tbptt.train(trainer, tbptt.open_feed(stream, 5), place, windows=100)
    options = dict(standardizer=standardizer, paths=200, jit_compile=False)
    forecaster, inside, horizon = Forecaster(model, 1, **options), [], 5
    for begin in range(2500, 2980, horizon * 2):
        history = values[begin - 20 : begin] + 20
        low, high = quantiles(forecaster(history, horizon), [0.1, 0.9]).swapaxes(0, 1)
        truth = values[begin : begin + horizon] + 20
        inside.append(float(np.mean((truth >= low) & (truth <= high))))
    assert abs(np.mean(inside) - 0.8) < 4 * np.std(inside) / np.sqrt(len(inside))


SEQUENCES = tbptt.SequenceModel(
    tbptt.GRU(1, 2, seed=tbptt.make_seed(0)), 3, tbptt.squared_error, seed=tbptt.make_seed(1)
)
BAD = {
    "no noise": (dict(model=Autoregression([1.0], [0.0])), {}, "1 outputs for 1 columns.* give re"),
    "twice": (dict(residuals=[[1.0]]), {}, "2 outputs for 1 columns.*Leave out residuals"),
    "a path": (
        dict(model=SEQUENCES),
        {},
        "3 outputs for 1 columns, but must have 1 with residuals, or 2 without. A model that feeds",
    ),
    "history": ({}, dict(history=[[1.0, 2.0]]), r"history has shape \[1, 2\]"),
    "empty": ({}, dict(history=np.zeros([0, 1])), "shapes"),
    "horizon": ({}, dict(horizon=0), r"horizon \(0\) must be at least 1"),
    "residuals": (dict(residuals=[[np.nan]]), {}, "residuals must be finite"),
    "paths": (dict(paths=0), {}, r"paths \(0\)"),
    "wild": (
        dict(model=Autoregression([1e30], [0.0], [1.0]), paths=7),
        dict(horizon=3),
        "7 of 7 paths are not finite",
    ),
    "standardizer": (
        dict(standardizer=tbptt.Standardizer(np.zeros(2), np.ones(2))),
        {},
        "The standardizer is of 2 columns, and the forecasts of 1",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_forecasts_that_cannot_be_are_refused(case):
    made, called, message = BAD[case]
    made = dict(model=Autoregression([0.5], [0.0], [1.0]), columns=1, jit_compile=False) | made
    with pytest.raises(ValueError, match=message):
        Forecaster(**made)(**(dict(history=[[1.0]], horizon=2) | called))


def test_levels_are_checked():
    with pytest.raises(ValueError, match=r"levels \(\[2\]\) must be from 0 to 1"):
        quantiles(np.zeros([3, 1, 1]), [2])
