"""The hot loop: laws 2, 3, 6, 11 and 12 for a whole model, and what it does about NaN."""

import functools
import glob
import os

import numpy as np
import pytest
import tensorflow as tf

import tbptt
from tbptt import optimizers, testing
from tbptt.streams.feed import Chunk
from tbptt.testing import assert_close, assert_same_bits
from tbptt.training.window import (
    FAULTLESS,
    Sum,
    WindowGradients,
    describe_fault,
    find_fault,
    is_finite,
    start_state,
    window_gradients,
)
from tests.commands import FORKS
from tests.conftest import LOOPS, make_core, put_back, values_of

VOCABULARY, ROWS, STEPS = 7, 2, 4


def make_model(kind="lstm", *, dropout=0.0, backend="auto", learned=False):
    core = make_core(kind, backend=backend, learned=learned)
    return tbptt.LanguageModel(VOCABULARY, 3, core, seed=tbptt.make_seed(1), dropout_rate=dropout)


def make_trainer(kind="lstm", *, jit=False, optimizer=None, model=None, **options):
    return tbptt.Trainer(
        model or make_model(kind, **options),
        optimizer or optimizers.chain(optimizers.clip_by_global_norm(0.3), optimizers.adam(0.01)),
        jit_compile=jit,
    )


@functools.cache
def _first_made(kind, jit):
    trainer = make_trainer(kind, jit=jit)
    return trainer, values_of(trainer)


def as_new(kind="lstm", *, jit):
    """Returns the trainer that `make_trainer` makes, compiled by the first test that trains it."""
    trainer, first_values = _first_made(kind, jit)
    put_back(trainer, first_values)
    return trainer


def make_stream(windows=10):
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, [ROWS * STEPS * windows + 1])
    return tbptt.ContiguousStream(
        tokens, rows=ROWS, window_length=STEPS, vocabulary_size=VOCABULARY
    )


def everything(trainer, run_state):
    return [*trainer.variables, *tf.nest.flatten(run_state.loop_state)]


def run(trainer, stream, windows, windows_per_call, feed=tbptt.ResidentFeed, **options):
    start = tbptt.RunState(trainer.initial_loop_state(ROWS))
    reader = feed(stream, windows_per_call)
    return tbptt.train(trainer, reader, start, windows=windows, **options)


@pytest.mark.parametrize(("kind", "backend", "jit"), LOOPS)
def test_calls_resume_and_evaluation_keep_the_bits(kind, backend, jit):
    """Laws 6, 7, 9 and 12, with dropout, Adam, an epoch's end inside: 12 windows of 10."""
    options = dict(jit=jit, dropout=0.3, backend=backend)
    testing.check_training(lambda: make_trainer(kind, **options), make_stream(), windows=12)


def test_eager_mode_runs_every_window_in_python(jit):
    """With `run_functions_eagerly` a debugger sees every window's numbers; the losses are equal."""
    trainer, seen = make_trainer(optimizer=optimizers.sgd(0.1), jit=jit), []
    first_values, loss = values_of(trainer), trainer.model.loss

    def looks(window, state, **options):
        result, state = loss(window, state, **options)
        if tf.executing_eagerly():
            seen.append(float(tf.reduce_mean(result.loss)))
        return result, state

    losses = []
    for eager in (False, True):
        put_back(trainer, first_values)
        tf.config.run_functions_eagerly(eager)
        trainer.model.loss = looks
        log = tbptt.Every(1, lambda report: losses.append(report.metrics.loss))
        run(trainer, make_stream(), 4, 4, actions=[log])
        tf.config.run_functions_eagerly(False)
    assert_close(np.float32(losses[4:]), np.float32(losses[:4]))
    assert set(np.float32(losses[4:]).round(5)) <= set(np.float32(seen).round(5))


def test_feeds_agree_to_the_bit():
    results = []
    for feed in (tbptt.ResidentFeed, tbptt.PrefetchFeed):
        trainer = make_trainer()
        results.append(everything(trainer, run(trainer, make_stream(), 23, 4, feed)))
    assert_same_bits(*results)


def test_same_seed_same_bits_other_seed_other_bits():
    results = []
    for seed in (0, 0, 1):
        model = make_model(dropout=0.3)
        trainer = tbptt.Trainer(model, optimizers.sgd(0.1), seed=seed, jit_compile=False)
        run(trainer, make_stream(), 3, 3)
        results.append(model.trainable_variables)
    assert_same_bits(results[0], results[1])
    assert not np.array_equal(results[0][1], results[2][1])


def _run_many_calls(folder):
    """Trains in a process of its own, where XLA reads flags: what it compiles goes to a folder."""
    os.environ["XLA_FLAGS"] = f"--xla_dump_to={folder} --xla_dump_hlo_as_text"
    trainer = make_trainer(jit=True)
    run(trainer, make_stream(), 37, 5, actions=[tbptt.Every(7, lambda report: None)])
    assert trainer.traces == 1


def test_no_retracing_and_no_recompiling(tmp_path):
    """Law 12 down to XLA: one compiled module, whatever the window, the count and the epoch."""
    process = FORKS.Process(target=_run_many_calls, args=(tmp_path,))
    process.start()
    process.join(timeout=300)
    assert process.exitcode == 0
    modules = glob.glob(f"{tmp_path}/*_train_*before_optimizations.txt")
    assert len(modules) == 1


def test_state_is_carried_and_an_epoch_starts_anew(jit):
    """The carried state after each call is what the model gives by hand, window by window."""
    trainer = make_trainer(jit=jit, optimizer=optimizers.sgd(1e-30))  # parameters stand still
    stream = make_stream(windows=3)
    run_state = tbptt.RunState(trainer.initial_loop_state(ROWS))
    reader = tbptt.ResidentFeed(stream, 1)
    state = trainer.model.initial_state(ROWS)
    for step in range(5):
        if step == 3:
            state = trainer.model.initial_state(ROWS)
        window, _ = stream.windows(tbptt.Cursor(*divmod(step, 3)), 1)
        _, state = trainer.model(window.at(0).inputs, state)
        run_state = tbptt.train(trainer, reader, run_state, windows=step + 1)
        assert_close(run_state.loop_state.state, state)


def test_overlapping_windows_carry_the_state_of_where_they_advance_to(jit):
    """Each window of 4 begins 2 steps before its new ones: the state there is carried."""
    trainer = make_trainer(jit=jit, optimizer=optimizers.sgd(1e-30))  # parameters stand still
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, [ROWS * 20 + 1])
    stream = tbptt.ContiguousStream(
        tokens, rows=ROWS, vocabulary_size=VOCABULARY, truncation=tbptt.Truncation(4, stride=2)
    )
    reader = tbptt.ResidentFeed(stream, 3)
    run_state = tbptt.RunState(trainer.initial_loop_state(ROWS))
    for windows in (4, 9, 14):  # of 10 in an epoch
        run_state = tbptt.train(trainer, reader, run_state, windows=windows)
        steps = 2 * (windows % 10) - 2
        read = stream.read(windows // 10, 0, steps, slice(None))
        whole = tf.constant(read.inputs.T)
        _, expected = trainer.model(whole, trainer.model.initial_state(ROWS))
        assert run_state.loop_state.offset.numpy().tolist() == [steps, 20 + steps]
        assert_close(run_state.loop_state.state, expected)


def test_rate_scales_the_update():
    """A window at half the rate moves the parameters half as far."""
    window, _ = make_stream().windows(tbptt.Cursor(), 1)
    moved = []
    for rate in (1.0, 0.5):
        trainer = make_trainer(optimizer=optimizers.sgd(0.1))
        before = [parameter.numpy() for parameter in trainer.model.trainable_variables]
        rated = tf.nest.map_structure(
            lambda f: None if f is None else tf.constant(f),
            window._replace(update_scale=np.array([rate], np.float32)),
        )
        chunk = Chunk(rated, tf.constant(0, tf.int64), tf.constant(1, tf.int64))
        trainer(trainer.initial_loop_state(ROWS), chunk)
        after = trainer.model.trainable_variables
        moved.append([a.numpy() - b for a, b in zip(after, before, strict=True)])
    assert_close(moved[1], [0.5 * part for part in moved[0]])


def test_window_gradient_stops_at_the_window():
    """Law 2: the state that comes in gets no gradient, though the loss depends on it."""
    model = make_model()
    window, _ = make_stream().windows(tbptt.Cursor(index=1), 1)
    window = window.at(0)
    state = tf.nest.map_structure(tf.ones_like, model.initial_state(ROWS))
    with tf.GradientTape() as tape:
        tape.watch(tf.nest.flatten(state))
        outputs, _ = model(window.inputs, start_state(model, window, state))
        loss = tf.reduce_sum(outputs)
    assert tape.gradient(loss, tf.nest.flatten(state)) == [None, None]


def test_one_window_over_everything_is_full_backpropagation():
    """Law 2: with T = the whole sequence, the window's gradient is the gradient."""
    model = make_model()
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, [ROWS * 12 + 1])
    stream = tbptt.ContiguousStream(tokens, rows=ROWS, window_length=12, vocabulary_size=VOCABULARY)
    window = stream.windows(tbptt.Cursor(), 1)[0].at(0)
    result = window_gradients(model, "mean", window, model.initial_state(ROWS), None)
    with tf.GradientTape() as tape:
        state = model.initial_state(ROWS)
        losses = []
        for t in range(12):
            logits, state = model(window.inputs[t : t + 1], state)
            losses.append(tbptt.cross_entropy(logits, window.targets[t : t + 1]))
        loss = tf.reduce_mean(tf.stack(losses))
    full = tape.gradient(loss, model.trainable_variables)
    assert_close(result.gradients, [tf.convert_to_tensor(g) for g in full])


def test_learned_initial_state_learns_only_where_rows_start():
    """Law 3 for the cheap reset at an epoch's start."""
    model = make_model(learned=True)
    learned = [i for i, v in enumerate(model.trainable_variables) if "initial" in v.name]
    assert len(learned) == 2
    for index in (0, 1):
        window = make_stream().windows(tbptt.Cursor(index=index), 1)[0].at(0)
        result = window_gradients(model, "mean", window, model.initial_state(ROWS), None)
        for i in learned:
            assert np.any(result.gradients[i]) == (index == 0)


def test_permuting_rows_permutes_the_carried_state(jit):
    """Law 4 for the loop; no dropout, whose masks belong to places."""
    stream = make_stream()
    windows, _ = stream.windows(tbptt.Cursor(), 10)
    order = [1, 0]
    results = []
    for rows in ([0, 1], order):
        trainer = as_new(jit=jit)
        moved = tf.nest.map_structure(
            lambda f, rows=rows: None if f is None else tf.constant(f[..., rows]), windows
        )
        chunk = Chunk(moved, tf.constant(0, tf.int64), tf.constant(4, tf.int64))
        results.append(trainer(trainer.initial_loop_state(ROWS), chunk)[0].state)
    assert_close(results[1], tbptt.state.take_rows(results[0], order))


class Broken:
    """A stream with something wrong in one window."""

    def __init__(self, stream, change):
        self.stream, self.change = stream, change
        self.rows, self.window_length = stream.rows, stream.window_length
        self.windows_per_epoch, self.epochs_alike = stream.windows_per_epoch, True

    def windows(self, cursor, count):
        windows, cursor = self.stream.windows(cursor, count)
        return self.change(windows), cursor


@pytest.mark.parametrize("kind", ["lstm", "own"])
def test_stream_that_does_not_continue_is_refused(kind, jit):
    """Law 11: rows swapped from window 3 on; nothing is learned from it."""

    def swap(windows):
        run_state = windows.offset.copy()
        run_state[3:] = run_state[3:, ::-1]
        return windows._replace(offset=run_state)

    trainer = as_new(kind, jit=jit)
    with pytest.raises(tbptt.ContinuityError, match="window 3 of the call that began at Cursor"):
        run(trainer, Broken(make_stream(), swap), 8, 8)
    after_refusal = [variable.numpy() for variable in trainer.model.variables]
    trainer = as_new(kind, jit=jit)
    run(trainer, make_stream(), 3, 8)
    assert_same_bits(after_refusal, trainer.model.variables)


def test_a_reset_may_break_continuity(jit):
    def jump(windows):
        run_state = windows.offset.copy()
        run_state[3:] += 100
        reset = np.zeros([len(run_state), STEPS, ROWS], bool)
        reset[3, 0] = True
        return windows._replace(offset=run_state, controls=tbptt.Controls(reset))

    trainer = make_trainer(jit=jit)
    run(trainer, Broken(make_stream(), jump), 8, 8)
    assert trainer.windows_seen == 8


def test_starting_in_mid_epoch_with_an_empty_state_is_refused():
    trainer = make_trainer()
    start = tbptt.RunState(trainer.initial_loop_state(ROWS), tbptt.Cursor(0, 2))
    with pytest.raises(tbptt.ContinuityError, match=r"index=2\)"):
        tbptt.train(trainer, tbptt.ResidentFeed(make_stream(), 2), start, windows=2)


def nan_in_features(stream, *bad):
    """Features with NaN in these windows, for the model below."""

    def change(windows):
        inputs = np.zeros([*windows.inputs.shape, 3], np.float32)
        inputs[...] = np.eye(VOCABULARY, 3, dtype=np.float32)[windows.inputs]
        for k in bad:
            inputs[k, 0, 0, 0] = np.nan
        start = np.ones_like(windows.start)  # the state forgets the NaN
        return windows._replace(inputs=inputs, start=start)

    return Broken(stream, change)


class Features(tf.Module):
    """Scores tokens from features: an LSTM and a readout."""

    def __init__(self):
        super().__init__()
        self.core = make_core("lstm")
        self.readout = tbptt.Dense(4, VOCABULARY, seed=tbptt.make_seed(4))

    def initial_state(self, rows):
        return self.core.initial_state(rows)

    def __call__(self, inputs, state, controls=None, *, training=False, seed=None):
        outputs, state = self.core(inputs, state)
        return self.readout(outputs), state

    def loss(self, window, state, *, training, seed):
        outputs, state = self(window.inputs, state)
        return tbptt.WindowLoss(tbptt.cross_entropy(outputs, window.targets)), state


def test_window_that_is_not_finite_is_skipped_and_counted(jit):
    """Parameters and optimizer state are those of a run without it; the metrics leave it out."""
    reports = []
    trainer = make_trainer(jit=jit, model=Features())
    first_values = values_of(trainer)
    stream = nan_in_features(make_stream(), 2)
    run(trainer, stream, 5, 5, actions=[tbptt.EveryCall(reports.append)])
    metrics = reports[0].metrics
    assert (metrics.windows, metrics.skipped, trainer.windows_seen) == (5, 1, 5)
    assert metrics.sums["loss"].weight == 4 * ROWS * STEPS
    assert np.isfinite(metrics.loss)
    assert np.isfinite(metrics.grad_norm_mean)
    assert all(np.isfinite(v).all() for v in trainer.variables)

    kept_variables = [*trainer.model.variables, *tf.nest.flatten(trainer.opt_state)]
    with_it = [variable.numpy() for variable in kept_variables]
    put_back(trainer, first_values)
    windows, _ = nan_in_features(make_stream(), 2).windows(tbptt.Cursor(), 10)
    without = [0, 1, 3, 4, *range(4, 10)]  # as many as before, of which four are trained
    kept = tf.nest.map_structure(lambda f: None if f is None else tf.constant(f[without]), windows)
    chunk = Chunk(kept, tf.constant(0, tf.int64), tf.constant(4, tf.int64))
    trainer(trainer.initial_loop_state(ROWS), chunk)
    assert trainer.traces == 1
    assert_same_bits(with_it, kept_variables)


class Rooted(Features):
    """Adds the root of an input, whose derivative is infinite where that is 0."""

    def __init__(self):
        super().__init__()
        self.extra = tf.Variable(1.0)

    def __call__(self, inputs, state, controls=None, *, training=False, seed=None):
        outputs, state = super().__call__(inputs, state)
        return outputs + tf.sqrt(self.extra * inputs[..., :1]), state


def test_the_parameter_whose_gradient_is_not_finite_is_named(jit):
    """The loss is finite; 0 times infinity is in the gradient of one parameter alone."""

    def roots(windows):
        inputs = np.ones([*windows.inputs.shape, 3], np.float32)
        inputs[[2, 4], 1, 0, 0] = 0
        return windows._replace(inputs=inputs)

    reports, trainer = [], make_trainer(jit=jit, model=Rooted())
    stream = Broken(make_stream(), roots)
    run(trainer, stream, 8, 6, actions=[tbptt.EveryCall(reports.append)])
    assert [report.metrics.skipped for report in reports] == [2, 0]
    assert [report.skipped for report in reports] == [
        "2 of the windows 1 to 6 were skipped, first window 3: its gradient of extra is not finite",
        "",
    ]


def test_faults_are_found_in_order():
    """The loss before the gradients, NaN before what is large; a large gradient alone is none."""
    model = make_model()
    names = list(tbptt.named_parameters(model))
    fine = [tf.zeros(parameter.shape) for parameter in model.trainable_variables]

    def told(loss=0.0, **bad):
        gradients = [bad.get(f"g{k}", 1.0) * tf.ones_like(g) for k, g in enumerate(fine)]
        sums = {"loss": Sum(tf.constant(loss), tf.constant(1.0))}
        result = WindowGradients(gradients, (), sums)
        finite, _ = is_finite(result)
        number = int(find_fault(result, finite))
        return number if number == FAULTLESS else describe_fault(model, number)

    assert told() == FAULTLESS
    assert told(loss=np.nan, g1=np.inf) == "its loss"
    assert told(g1=np.inf, g3=np.inf) == f"its gradient of {names[1]}"
    assert told(g1=1e25, g3=np.nan, g4=np.nan) == f"its gradient of {names[3]}"
    assert told(g1=1e25) == FAULTLESS


def test_penalties_are_trained_and_not_counted_as_loss(jit):
    """The gradient is that of their sum; the loss is what an evaluation would say of the window."""
    core, options = make_core("lstm"), dict(seed=tbptt.make_seed(1), dropout_rate=0.3)
    penalties = dict(activation_penalty=200.0, slowness_penalty=100.0)
    model = tbptt.LanguageModel(VOCABULARY, 3, core, **options, **penalties)
    trainer = tbptt.Trainer(model, optimizers.sgd(1.0), seed=5, jit_compile=jit)
    window = make_stream().windows(tbptt.Cursor(), 1)[0].at(0)
    seed = tbptt.seeds.fold_in(tbptt.make_seed(5), tf.zeros([], tf.int64))
    with tf.GradientTape() as tape:
        begun = model.initial_state(ROWS)
        result, _ = model.loss(window, begun, training=True, seed=seed)
        total = tf.reduce_mean(result.loss + result.penalty)
    gradients = tape.gradient(total, model.trainable_variables)
    expected = [
        v - tf.convert_to_tensor(g)
        for v, g in zip(model.trainable_variables, gradients, strict=True)
    ]
    reports = []
    run(trainer, make_stream(), 1, 1, actions=[tbptt.EveryCall(reports.append)])
    assert_close(list(model.trainable_variables), expected)
    metrics = reports[0].metrics
    np.testing.assert_allclose(metrics.loss, np.mean(result.loss), rtol=1e-5)
    np.testing.assert_allclose(metrics.means["penalty"], np.mean(result.penalty), rtol=1e-5)
    assert metrics.means["penalty"] > 0.01


def test_too_many_windows_in_a_row_that_are_not_finite_end_the_run():
    trainer = make_trainer(model=Features())
    stream = nan_in_features(make_stream(), 3, 4, 5, 6)
    with pytest.raises(
        tbptt.NonFiniteError,
        match=r"4 windows in a row up to window 7 had a loss.* parameters\. 4 of the windows 1 to "
        "7 were skipped, first window 4: its loss is not finite",
    ):
        run(trainer, stream, 10, 7, max_skipped_in_a_row=4)


def test_metrics_are_sums_over_the_call(jit):
    """Loss, weight and the norm before clipping, against one window at a time."""
    trainer, reports, single = as_new(jit=jit), [], []
    run(trainer, make_stream(), 4, 4, actions=[tbptt.EveryCall(reports.append)])
    trainer = as_new(jit=jit)
    run(trainer, make_stream(), 4, 1, actions=[tbptt.EveryCall(single.append)])
    norms = [report.metrics.grad_norm_max for report in single]
    assert max(norms) > 0.3  # clipping was at work
    assert reports[0].metrics.grad_norm_max == max(norms)
    assert np.isclose(reports[0].metrics.grad_norm_mean, np.mean(norms), rtol=1e-6)
    assert np.isclose(
        reports[0].metrics.loss, np.mean([report.metrics.loss for report in single]), rtol=1e-6
    )


@pytest.mark.parametrize(
    ("loop_state", "message"),
    [
        (lambda trainer: trainer.initial_loop_state(5), r"float32\[5, 4\] where float32\[2, 4\]"),
        (
            lambda trainer: tf.nest.map_structure(
                lambda x: tf.cast(x, tf.float64), trainer.initial_loop_state(ROWS)
            ),
            r"float64\[2, 4\] where float32\[2, 4\]",
        ),
        (
            lambda trainer: make_trainer("gru").initial_loop_state(ROWS),
            "Make it with initial_loop_state",
        ),
    ],
    ids=["batch size", "dtype", "model"],
)
def test_state_of_another_batch_size_or_dtype_or_model_is_refused(loop_state, message):
    trainer = make_trainer()
    chunk, _ = tbptt.ResidentFeed(make_stream(), 1).take(tbptt.Cursor(), 1)
    with pytest.raises(ValueError, match=message):
        trainer(loop_state(trainer), chunk)
    assert trainer.traces == 0
