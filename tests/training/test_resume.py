"""Law 7: put down after n windows and taken up by another trainer: the bits of one that went on."""

import numpy as np
import pytest
import tensorflow as tf

import tbptt
from tbptt import optimizers
from tbptt.checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from tbptt.streams.fingerprint import fingerprint
from tbptt.training.average import NonMonotonic
from tbptt.training.resume import restore, snapshot, variables_of
from tests.conftest import assert_same_bits, make_core
from tests.streams.test_streams import STREAMS, AnyModel, any_loss, make

VOCABULARY, ROWS, WINDOWS = 7, 2, 11  # an epoch has 6: the end lies in the second


def text():
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, [ROWS * 4 * 6 + 1])
    return tbptt.ContiguousStream(tokens, rows=ROWS, window_length=4, vocabulary_size=VOCABULARY)


def build(kind="lstm", *, jit=False, hidden_seed=1, **options):
    """A trainer with everything that has a memory: Adam, dropout, an average, a loss scale."""
    model = tbptt.LanguageModel(
        VOCABULARY, 3, make_core(kind), seed=tbptt.make_seed(hidden_seed), dropout_rate=0.4
    )
    optimizer = optimizers.chain(
        optimizers.clip_by_global_norm(0.3),
        optimizers.adamw(optimizers.warmup_cosine(0.02, 3, 20), weight_decay=0.1),
    )
    average = tbptt.Average(model)
    average.begin()
    return tbptt.Trainer(
        model,
        tbptt.cross_entropy,
        optimizer,
        seed=5,
        average=average,
        loss_scale=tbptt.LossScale(8.0, growth_interval=3),
        jit_compile=jit,
        **options,
    )


def go_on(trainer, stream, position, windows, losses):
    def log(report):
        losses[report.step] = np.float32(report.metrics.loss).tobytes()

    feed = tbptt.open_feed(stream, 2)
    return tbptt.train(trainer, feed, position, windows=windows, actions=[tbptt.Every(1, log)])


def begin(trainer, rows=ROWS):
    return tbptt.Position(trainer.initial_carry(rows))


@pytest.mark.parametrize(("kind", "jit"), [("lstm", False), ("stack", False), ("gru", True)])
def test_resumed_run_is_the_undisturbed_run(tmp_path, kind, jit):
    """Cut in an epoch, at its end and after it; through the disk."""
    whole, losses = build(kind, jit=jit), {}
    end = go_on(whole, text(), begin(whole), WINDOWS, losses)
    expected = {name: value.numpy() for name, value in variables_of(whole).items()}
    trainer, seen = build(kind, jit=jit), {}
    position = begin(trainer)
    other = whole  # with other values: all must come from the disk
    for cut in (3, 6, 8, WINDOWS):
        position = go_on(trainer, text(), position, cut, seen)
        write_checkpoint(tmp_path / str(cut), snapshot(trainer, position))
        for variable in other.variables:
            variable.assign(tf.ones_like(variable))
        position = restore(read_checkpoint(tmp_path / str(cut)), other, begin(other))
        trainer, other = other, trainer
    assert_same_bits(position.carry, end.carry)
    assert position.cursor == end.cursor
    found = variables_of(trainer)
    assert list(found) == list(expected)
    for name in found:
        assert_same_bits(found[name], expected[name])
    assert seen == losses  # of every window


@pytest.mark.parametrize("stream", STREAMS)
def test_every_stream_goes_on_where_it_was(stream):
    """Cut in an epoch, at its end and in the next one; all truncations at once, dropout, Adam.

    Laws 11 and 12 too: windows continue, and it is one program whatever the cut and the epoch.
    """
    made, again = make(stream, "everything"), make(stream, "everything")
    trainer = tbptt.Trainer(
        AnyModel(dropout_rate=0.3), any_loss, optimizers.adam(0.01), jit_compile=False
    )
    start = begin(trainer, made.rows)
    beginning, losses, seen = snapshot(trainer, start), {}, {}
    windows = made.windows_per_epoch + 5
    end = go_on(trainer, made, start, windows, losses)
    whole = snapshot(trainer, end)
    assert end.cursor == tbptt.Cursor(1, 5)
    position = restore(beginning, trainer, start)
    for cut in (2, made.windows_per_epoch, made.windows_per_epoch + 3, windows):
        position = go_on(trainer, again, position, cut, seen)
        taken = snapshot(trainer, position)
        go_on(trainer, again, position, cut + 1, {})  # what comes after must not count
        position = restore(taken, trainer, start)
    assert seen == losses
    assert trainer.traces == 1
    # Where labels are of whole sequences, a window without an end of one has no loss.
    assert np.isfinite([np.frombuffer(loss, np.float32) for loss in losses.values()]).mean() > 0.5
    last = snapshot(trainer, position)
    assert (last.step, last.facts) == (whole.step, whole.facts)
    for name, array in whole.arrays.items():
        assert_same_bits(last.arrays[name], array)
    assert fingerprint(made) == fingerprint(again)
    assert fingerprint(made) != fingerprint(make(stream, "plain"))


def test_a_changed_corpus_has_another_fingerprint():
    tokens = np.arange(50) % VOCABULARY
    options = dict(rows=ROWS, window_length=4, vocabulary_size=VOCABULARY)
    before = fingerprint(tbptt.ContiguousStream(tokens, **options))
    tokens = tokens.copy()
    tokens[29] = 0
    assert fingerprint(tbptt.ContiguousStream(tokens, **options)) != before


def test_names_say_what_is_what():
    names = list(snapshot(build(), begin(build())).arrays)
    assert {
        "model.core.w_h", "model.embedding.table", "average.core.w_h", "average.count",
        "loss_scale.scale", "loss_scale.good_steps", "step", "carry.state.hidden",
        "carry.position", "carry.skipped_in_a_row",
    } <= set(names)  # fmt: skip
    assert any(name.startswith("slots.") for name in names)


def test_another_model_and_other_facts_are_refused_and_nothing_changes():
    taken = snapshot(build(), begin(build()), facts={"settings": {"seed": 1}, "stream": "ab"})
    other = build("gru")
    before = [variable.numpy() for variable in other.variables]
    with pytest.raises(CheckpointError) as error:
        restore(taken, other, begin(other), facts={"settings": {"seed": 1}, "stream": "cd"})
    message = str(error.value)
    for part in (
        "The checkpoint of window 0 is of another run",
        "stream: 'ab' in the checkpoint, 'cd' here",
        "model.core.w_x: float32 [3, 16] in the checkpoint, float32 [3, 12] here",
        "model.core.b_h: nothing in the checkpoint, float32 [4] here",
        "carry.state.cell: float32 [2, 4] in the checkpoint, nothing here",
    ):
        assert part in message
    assert "settings" not in message
    assert_same_bits(other.variables, before)


def test_other_rows_are_refused():
    trainer = build()
    with pytest.raises(CheckpointError, match=r"carry.position: int64 \[2\] in the checkpoint, in"):
        restore(snapshot(trainer, begin(trainer)), trainer, begin(trainer, rows=3))


def test_parts_go_along(tmp_path):
    trainer = build()
    best, trigger = tbptt.KeepBest(trainer.model), NonMonotonic(2)
    best.offer(3.0, 4)
    for figure in (5.0, 4.0, 6.0):
        trigger.offer(figure)
    parts = {"best": best, "trigger": trigger}
    write_checkpoint(tmp_path / "one", snapshot(trainer, begin(trainer), parts=parts))
    values = [v.numpy() for v in trainer.model.trainable_variables]
    other = build(hidden_seed=2)
    parts = {"best": tbptt.KeepBest(other.model), "trigger": NonMonotonic(2)}
    restore(read_checkpoint(tmp_path / "one"), other, begin(other), parts=parts)
    assert (parts["best"].figure, parts["best"].step) == (3.0, 4)
    assert not parts["best"].offer(3.5, 5)
    for variable in other.model.trainable_variables:
        variable.assign(tf.zeros_like(variable))
    parts["best"].apply()
    assert_same_bits(other.model.trainable_variables, values)
    assert parts["trigger"].offer(7.0) == trigger.offer(7.0) is True


def test_parts_that_do_not_fit_are_refused_and_nothing_changes():
    """The second part refuses; the first one and the trainer are as they were."""
    trainer, other = build(), build()
    best, trigger = tbptt.KeepBest(trainer.model), NonMonotonic(2)
    best.offer(3.0, 4)
    taken = snapshot(trainer, begin(trainer), parts={"trigger": trigger, "best": best})
    name = next(name for name in taken.arrays if name.startswith("best."))
    taken.arrays[name] = taken.arrays[name][:-1]
    parts = {"trigger": NonMonotonic(2), "best": tbptt.KeepBest(other.model)}
    parts["trigger"].offer(9.0)
    earlier = parts["trigger"].snapshot()
    other.step.assign(5)
    with pytest.raises(CheckpointError, match=r"another run\. best: parameters of shapes \["):
        restore(taken, other, begin(other), parts=parts)
    assert parts["trigger"].snapshot() == earlier
    assert parts["best"].figure == np.inf
    assert int(other.step) == 5


def test_a_state_of_one_tensor_twice_comes_back_in_its_places():
    """Names follow the structure's order, not the dictionary's, and not the tensors' identity."""
    zero = tf.zeros([2, 1])
    core = tbptt.Recurrent(
        lambda x, s: (x, {"b": s["b"] + 1.0, "a": s["a"] + 2.0}),
        lambda rows: {"b": zero, "a": zero},
        output_size=3,
    )
    model = tbptt.LanguageModel(VOCABULARY, 3, core, seed=tbptt.make_seed(0))
    trainer = tbptt.Trainer(model, tbptt.cross_entropy, optimizers.sgd(0.1), jit_compile=False)
    position = go_on(trainer, text(), begin(trainer), 2, {})
    found = restore(snapshot(trainer, position), trainer, begin(trainer))
    assert found.carry.state["a"].numpy().tolist() == [[16.0], [16.0]]
    assert found.carry.state["b"].numpy().tolist() == [[8.0], [8.0]]
