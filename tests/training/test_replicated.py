"""Law 8: R replicas of B / R rows follow one of B rows; law 7 over another number of replicas."""

import contextlib

import numpy as np
import pytest
import tensorflow as tf

import tbptt
from tbptt import optimizers
from tbptt.checkpoint.snapshot import restore, snapshot, variables_of
from tbptt.distribution import Replicas, open_replicas
from tbptt.serving.sampling import Sampler
from tbptt.testing import TOLERANCES, assert_same_bits
from tbptt.training.loop import describe_skipped
from tests.conftest import make_core

VOCABULARY, ROWS, LENGTH, WINDOWS = 7, 4, 5, 24
LENGTHS = np.random.default_rng(3).integers(2, 20, 30)
DOCUMENTS = tbptt.Segments(
    np.random.default_rng(4).integers(0, VOCABULARY, LENGTHS.sum()), np.cumsum(LENGTHS)
)


@pytest.fixture(scope="module")
def two():
    return open_replicas("mirrored")


def stream(rows=ROWS, **options):
    options = dict(window_length=LENGTH) | options
    return tbptt.DocumentStream(DOCUMENTS, rows=rows, vocabulary_size=VOCABULARY, **options)


def build(replicas, *, kind="lstm", jit=False, reduction="mean", learned=False, **options):
    """Resets, clipping, Adam, an average and a loss scale."""
    with replicas.scope() if replicas else contextlib.nullcontext():
        core = make_core(kind, learned=learned)
        model = tbptt.LanguageModel(VOCABULARY, 3, core, seed=tbptt.make_seed(1), **options)
        average = tbptt.Average(model)
        average.begin()
        return tbptt.Trainer(
            model,
            optimizers.chain(optimizers.clip_by_global_norm(0.3), optimizers.adam(0.02)),
            reduction=reduction,
            average=average,
            loss_scale=tbptt.LossScale(8.0, growth_interval=7),
            replicas=replicas,
            jit_compile=jit,
        )


def open_feed(replicas, of=None):
    return tbptt.open_feed(of or stream(), 4, replicas=replicas)


def go_on(trainer, replicas, run_state, windows, losses, of=None):
    def log(report):
        losses[report.step] = report.metrics.loss

    return tbptt.train(
        trainer, open_feed(replicas, of), run_state, windows=windows, actions=[tbptt.Every(1, log)]
    )


def begin(trainer, rows=ROWS):
    return tbptt.RunState(trainer.initial_loop_state(rows))


@pytest.mark.parametrize(
    ("kind", "jit", "options"),
    [
        ("lstm", True, {}),
        ("gru", False, dict(reduction="sum_over_window", learned=True)),
        ("own", False, {}),
    ],
    ids=["lstm compiled", "gru summed", "own"],
)
def test_replicas_follow_one_replica(two, kind, jit, options):
    """Law 8: losses, parameters and state, and copies that are alike to the bit."""
    results = []
    for replicas in (None, two):
        trainer, losses = build(replicas, kind=kind, jit=jit, **options), {}
        run_state = go_on(trainer, replicas, begin(trainer), WINDOWS, losses)
        assert trainer.traces == 1
        results.append((trainer, trainer.gather(run_state.loop_state), losses, run_state.cursor))
    (one, loop_state, losses, cursor), (many, of_many, losses_of_many, cursor_of_many) = results
    assert cursor == cursor_of_many
    np.testing.assert_allclose(list(losses_of_many.values()), list(losses.values()), rtol=1e-4)
    np.testing.assert_allclose(losses_of_many[1], losses[1], rtol=1e-6)
    for a, b in zip(*(tf.nest.flatten(each) for each in (of_many, loop_state)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    for name, variable in variables_of(many).items():
        copies = two.strategy.experimental_local_results(variable)
        assert_same_bits(*copies)  # every replica has made the same updates
        np.testing.assert_allclose(
            copies[0], variables_of(one)[name], rtol=1e-3, atol=1e-4, err_msg=name
        )


def test_each_replica_reads_its_rows_and_keeps_their_state(two):
    """Rows are dealt contiguously, on the device of their replica, and gathered in their order."""
    trainer, of = build(two), stream()
    chunk, _ = open_feed(two).take(tbptt.Cursor(), 2)
    windows, _ = of.windows(tbptt.Cursor(), 4)
    parts = two.strategy.experimental_local_results(chunk.windows.inputs)
    assert [part.device[-5:] for part in parts] == ["CPU:0", "CPU:1"]
    for replica, part in enumerate(parts):
        rows = slice(replica * 2, replica * 2 + 2)
        np.testing.assert_array_equal(part, windows.inputs[:, :, rows])
    state = tf.reshape(tf.range(8.0), [4, 2])
    scattered = two.scatter({"a": state, "b": tf.constant(3)})
    assert_same_bits(two.one(scattered), {"a": state[:2], "b": tf.constant(3)})
    assert_same_bits(two.gather(scattered), {"a": state, "b": tf.constant(3)})
    assert trainer.local(begin(trainer).loop_state).offset.shape == [ROWS]
    assert two.any(False, True) == (False, True)
    assert two.is_chief


CUT = 10


@pytest.fixture(scope="module")
def runs(two):
    """By name: replicas, trainer, what a run was at CUT and in the end, and its losses."""
    made = {}
    for name, replicas in (("one", None), ("two", two)):
        trainer, losses = build(replicas), {}
        run_state = go_on(trainer, replicas, begin(trainer), CUT, losses)
        cut = snapshot(trainer, run_state)
        end = go_on(trainer, replicas, run_state, WINDOWS, losses)
        made[name] = (replicas, trainer, cut, snapshot(trainer, end), losses)
    return made


def test_resumed_on_another_number_of_replicas(runs):
    """The same rows go on at the same place with the same state; on the same number, to the bit."""
    for before, after in (("two", "one"), ("one", "two"), ("two", "two")):
        resume(runs, before, after)


def resume(runs, before, after):
    _, _, cut, end, losses = runs[before]
    replicas, trainer, *_ = runs[after]
    assert cut.arrays["loop_state.state.hidden"].shape == (ROWS, 4)
    for variable in trainer.variables:
        variable.assign(tf.ones_like(variable))
    run_state = restore(cut, trainer, begin(trainer))
    for name, array in snapshot(trainer, run_state).arrays.items():
        assert_same_bits(array, cut.arrays[name])
    seen = {}
    run_state = go_on(trainer, replicas, run_state, WINDOWS, seen)
    again = snapshot(trainer, run_state)
    assert again.facts == end.facts
    if before == after:
        assert seen == {step: loss for step, loss in losses.items() if step > CUT}
        for name, array in end.arrays.items():
            assert_same_bits(again.arrays[name], array)
    else:
        for step, loss in seen.items():
            assert loss == pytest.approx(losses[step], rel=1e-4)
        for name, array in end.arrays.items():
            np.testing.assert_allclose(again.arrays[name], array, rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def dropping(two):
    """With dropout; gradients are sent in bfloat16."""
    return build(Replicas(two.strategy, reduce_dtype=tf.bfloat16), dropout_rate=0.5)


def test_dropout_is_another_one_on_every_replica(two, dropping):
    same = np.tile(np.random.default_rng(0).integers(0, VOCABULARY, 60), ROWS + 1)
    of = tbptt.ContiguousStream(same, rows=ROWS, window_length=LENGTH, vocabulary_size=VOCABULARY)
    run_state = go_on(dropping, two, begin(dropping), 3, {}, of)
    hidden = dropping.gather(run_state.loop_state).state.hidden
    assert not np.allclose(hidden[0], hidden[2])


def test_gradients_sent_in_bfloat16_are_near(two, runs):
    """All replicas get the same sum, of numbers that are a little off."""
    trainer, losses = build(Replicas(two.strategy, reduce_dtype=tf.bfloat16)), {}
    go_on(trainer, two, begin(trainer), CUT, losses)
    for variable in trainer.variables:
        assert_same_bits(*two.strategy.experimental_local_results(variable))
    *_, exact = runs["two"]
    assert losses[1] == exact[1]  # before any gradient was sent
    assert losses[CUT] != exact[CUT]
    for step, loss in losses.items():
        assert loss == pytest.approx(exact[step], rel=TOLERANCES["bfloat16"]["rtol"])


def test_windows_that_are_not_finite_on_one_replica_are_skipped_on_all(two, dropping):
    loop_state = tf.nest.map_structure(np.array, dropping.gather(begin(dropping).loop_state))
    loop_state.state.hidden[3] = np.nan
    plain = tbptt.ContiguousStream(
        np.arange(81) % VOCABULARY, rows=ROWS, window_length=LENGTH, vocabulary_size=VOCABULARY
    )
    chunk, _ = open_feed(two, plain).take(tbptt.Cursor(index=1), 1)
    loop_state = loop_state._replace(offset=np.full([ROWS], LENGTH))
    before = [variable.numpy() for variable in dropping.model.trainable_variables]
    loop_state, metrics = dropping(dropping.scatter(loop_state), chunk)
    told = describe_skipped(dropping.model, metrics.read(), 5)
    assert told == "window 6 was skipped: its loss is not finite"
    assert_same_bits(dropping.model.trainable_variables, before)
    for part in two.strategy.experimental_local_results(loop_state.skipped_in_a_row):
        assert int(part) == 1


def test_a_break_on_one_replica_stops_updates_on_all(two, dropping):
    loop_state = dropping.gather(begin(dropping).loop_state)
    of = tbptt.ContiguousStream(
        np.arange(81) % VOCABULARY, rows=ROWS, window_length=LENGTH, vocabulary_size=VOCABULARY
    )
    chunk, _ = open_feed(two, of).take(tbptt.Cursor(index=1), 1)
    wrong = np.array([LENGTH, LENGTH, LENGTH, LENGTH + 1])
    before = [variable.numpy() for variable in dropping.model.trainable_variables]
    _, metrics = dropping(dropping.scatter(loop_state._replace(offset=wrong)), chunk)
    assert metrics.read().broken == 0
    assert_same_bits(dropping.model.trainable_variables, before)


@pytest.mark.parametrize("jit", [False, True], ids=["plain", "compiled"])
def test_evaluation_on_replicas_scores_every_target_once(two, jit):
    """Over several calls; and an evaluation reads what training has made of the copies."""
    model = build(two).model
    options = dict(windows_per_call=4, jit_compile=jit)
    one = tbptt.Evaluator(model, stream(), **options)
    many = tbptt.Evaluator(model, stream(), replicas=two, **options)
    for factor in (1.0, 2.0):
        for parameter in model.trainable_variables:
            parameter.assign(parameter * factor)
        expected, found = one(), many()
        assert found.weight_sum == expected.weight_sum == LENGTHS.sum() - len(LENGTHS)
        assert found.loss == pytest.approx(expected.loss, rel=1e-6)
    assert many.traces == 1


def test_evaluation_on_replicas_is_refused_where_it_cannot_be(two):
    model = build(two).model
    with pytest.raises(ValueError, match=r"rows \(3\) must be a multiple of replicas \(2\)"):
        tbptt.Evaluator(model, stream(3), replicas=two)
    options = dict(replicas=two, optimizer=optimizers.sgd(0.1))
    with pytest.raises(ValueError, match="One device evaluates dynamically: leave out replicas"):
        tbptt.Evaluator(model, stream(), **options)
    with pytest.raises(ValueError, match="was made outside the scope of 2 replicas"):
        tbptt.Evaluator(build(None).model, stream(), replicas=two)


def test_evaluation_and_sampling_read_the_copies(two):
    """The plain programs, on the first device: the figures of one replica."""
    figures = []
    for replicas in (None, two):
        model = build(replicas).model
        evaluation = tbptt.Evaluator(model, stream(3), windows_per_call=4, jit_compile=False)()
        sample = Sampler(model, jit_compile=False).sample([1, 2, 3], 5, [[0, 0]])
        figures.append((evaluation, sample.tolist()))
    assert figures[0] == figures[1]


def test_rows_that_cannot_be_dealt_are_refused_with_those_that_can(two):
    message = r"rows \(5\) must be a multiple of replicas \(2\), because .* Use rows=4 or 6\."
    with pytest.raises(ValueError, match=message):
        open_feed(two, stream(5))
    with pytest.raises(ValueError, match=r"rows \(1\) .* Use rows=2\."):
        build(two).initial_loop_state(1)


def test_what_is_made_outside_the_scope_is_refused(two):
    core = make_core("lstm")
    model = tbptt.LanguageModel(VOCABULARY, 3, core, seed=tbptt.make_seed(1))
    message = "was made outside the scope of 2 replicas. Build model, average, loss scale and tra"
    with two.scope(), pytest.raises(ValueError, match=message):
        tbptt.Trainer(model, optimizers.sgd(0.1), replicas=two)
