"""Law 7: saved after n windows and resumed by another trainer: the bits of a run left alone."""

import json

import numpy as np
import pytest
import tensorflow as tf

import tbptt
from tbptt import optimizers
from tbptt.checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from tbptt.checkpoint.snapshot import restore, snapshot, variables_of
from tbptt.streams.fingerprint import fingerprint
from tbptt.testing import assert_same_bits
from tbptt.training.average import NonMonotonic
from tests.conftest import make_core
from tests.streams.test_streams import STREAMS, AnyModel
from tests.streams.test_streams import make as make_stream

VOCABULARY, ROWS, WINDOWS = 7, 2, 11  # an epoch has 6: the end lies in the second


def text():
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, [ROWS * 4 * 6 + 1])
    return tbptt.ContiguousStream(tokens, rows=ROWS, window_length=4, vocabulary_size=VOCABULARY)


def build(
    kind="lstm", *, jit=False, hidden_seed=1, dropout=0.4, norm=0.3, rate=0.02, decay=0.1,
    seed=5, growth=3, core=None, **options,
):  # fmt: skip
    """A trainer with everything that has a memory: Adam, dropout, an average, a loss scale."""
    model = tbptt.LanguageModel(
        VOCABULARY, 3, make_core(kind, **(core or {})), seed=tbptt.make_seed(hidden_seed),
        dropout_rate=dropout,
    )  # fmt: skip
    schedule = rate if callable(rate) else optimizers.warmup_cosine(rate, 3, 20)
    optimizer = optimizers.chain(
        optimizers.clip_by_global_norm(norm),
        optimizers.adamw(schedule, weight_decay=decay),
    )
    average = tbptt.Average(model)
    average.begin()
    return tbptt.Trainer(
        model,
        optimizer,
        seed=seed,
        average=average,
        loss_scale=tbptt.LossScale(8.0, growth_interval=growth),
        jit_compile=jit,
        **options,
    )


def go_on(trainer, stream, run_state, windows, losses):
    def log(report):
        losses[report.step] = np.float32(report.metrics.loss).tobytes()

    feed = tbptt.open_feed(stream, 2)
    return tbptt.train(trainer, feed, run_state, windows=windows, actions=[tbptt.Every(1, log)])


def begin(trainer, rows=ROWS):
    return tbptt.RunState(trainer.initial_loop_state(rows))


@pytest.mark.parametrize(("kind", "jit"), [("stack", False), ("gru", True)])
def test_resumed_run_is_the_undisturbed_run(tmp_path, kind, jit):
    """Law 7: cut in an epoch, at its end and after it; through the disk."""
    whole, losses = build(kind, jit=jit), {}
    end = go_on(whole, text(), begin(whole), WINDOWS, losses)
    expected = {name: value.numpy() for name, value in variables_of(whole).items()}
    trainer, seen = build(kind, jit=jit), {}
    run_state = begin(trainer)
    other = whole  # with other values: all must come from the disk
    for cut in (3, 6, 8, WINDOWS):
        run_state = go_on(trainer, text(), run_state, cut, seen)
        write_checkpoint(tmp_path / str(cut), snapshot(trainer, run_state))
        for variable in other.variables:
            variable.assign(tf.ones_like(variable))
        run_state = restore(read_checkpoint(tmp_path / str(cut)), other, begin(other))
        trainer, other = other, trainer
    assert_same_bits(run_state.loop_state, end.loop_state)
    assert run_state.cursor == end.cursor
    found = variables_of(trainer)
    assert list(found) == list(expected)
    for name in found:
        assert_same_bits(found[name], expected[name])
    assert seen == losses  # of every window


@pytest.mark.parametrize("stream", STREAMS)
def test_every_stream_goes_on_where_it_was(stream):
    """Law 7: cut in an epoch, at its end and in the next; all truncations at once, dropout, Adam.

    Laws 11 and 12 too: windows continue, and it is one program whatever the cut and the epoch.
    """
    made, again = make_stream(stream, "everything"), make_stream(stream, "everything")
    trainer = tbptt.Trainer(AnyModel(dropout_rate=0.3), optimizers.adam(0.01), jit_compile=False)
    start = begin(trainer, made.rows)
    beginning, losses, seen = snapshot(trainer, start), {}, {}
    windows = made.windows_per_epoch + 5
    end = go_on(trainer, made, start, windows, losses)
    whole = snapshot(trainer, end)
    assert end.cursor == tbptt.Cursor(1, 5)
    run_state = restore(beginning, trainer, start)
    for cut in (2, made.windows_per_epoch, made.windows_per_epoch + 3, windows):
        run_state = go_on(trainer, again, run_state, cut, seen)
        taken = snapshot(trainer, run_state)
        go_on(trainer, again, run_state, cut + 1, {})  # what comes after must not count
        run_state = restore(taken, trainer, start)
    assert seen == losses
    assert trainer.traces == 1
    # Where labels are of whole sequences, a window without an end of one has no loss.
    assert np.isfinite([np.frombuffer(loss, np.float32) for loss in losses.values()]).mean() > 0.5
    last = snapshot(trainer, run_state)
    assert (last.step, last.facts) == (whole.step, whole.facts)
    for name, array in whole.arrays.items():
        assert_same_bits(last.arrays[name], array)
    assert fingerprint(made) == fingerprint(again)
    assert fingerprint(made) != fingerprint(make_stream(stream, "plain"))


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
        "loss_scale.scale", "loss_scale.good_steps", "step", "loop_state.state.hidden",
        "loop_state.offset", "loop_state.skipped_in_a_row",
    } <= set(names)  # fmt: skip
    assert any(name.startswith("opt_state.") for name in names)


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
        "loop_state.state.cell: float32 [2, 4] in the checkpoint, nothing here",
    ):
        assert part in message
    assert "settings" not in message
    assert_same_bits(other.variables, before)


OTHERWISE = {
    "seed": (dict(seed=6), ["seed: 5 in the checkpoint, 6 here"]),
    "reduction": (
        dict(reduction="sum_over_window"),
        ["reduction: 'mean' in the checkpoint, 'sum_over_window' here"],
    ),
    "learning rate": (
        dict(rate=0.03),
        [
            "optimizer.3.scale_by_learning_rate.schedule.warmup_cosine.peak: "
            "0.02 in the checkpoint, 0.03 here"
        ],
    ),
    "schedule": (
        dict(rate=optimizers.constant(0.02)),
        ["constant.value: nothing in the checkpoint, 0.02 here"],
    ),
    "a user's schedule": (
        dict(rate=lambda step: 0.02),
        ["optimizer.3.scale_by_learning_rate.schedule: nothing in the checkpoint, '"],
    ),
    "clipping": (
        dict(norm=0.4),
        ["optimizer.0.clip_by_global_norm.max_norm: 0.3 in the checkpoint, 0.4 here"],
    ),
    "weight decay": (
        dict(decay=0.2),
        ["optimizer.2.add_weight_decay.rate: 0.1 in the checkpoint, 0.2 here"],
    ),
    "dropout": (dict(dropout=0.5), ["model.dropout_rate: 0.4 in the checkpoint, 0.5 here"]),
    "recurrent dropout": (
        dict(core=dict(recurrent_dropout=0.1)),
        ["model.core.recurrent_dropout: 0.0 in the checkpoint, 0.1 here"],
    ),
    "loss scale": (dict(growth=4), ["loss_scale.growth_interval: 3 in the checkpoint, 4 here"]),
    "several": (
        dict(seed=6, dropout=0.5),
        ["seed: 5 in the checkpoint, 6 here", "model.dropout_rate: 0.4 in the checkpoint, 0.5"],
    ),
}


@pytest.mark.parametrize("case", OTHERWISE)
def test_a_trainer_that_would_go_on_differently_is_refused(tmp_path, case):
    """All variables have the same names, shapes and types; through the disk."""
    options, messages = OTHERWISE[case]
    trainer = build()
    write_checkpoint(tmp_path / "one", snapshot(trainer, begin(trainer)))
    other = build(**options)
    other.step.assign(9)
    with pytest.raises(CheckpointError, match="is of another run") as error:
        restore(read_checkpoint(tmp_path / "one"), other, begin(other))
    for message in messages:
        assert message in str(error.value)
    assert other.windows_seen == 9
    names = [message.split(":")[0] for message in messages]
    changed = [name if name.startswith(("seed", "model")) else name.split(".")[0] for name in names]
    if "constant" in changed:
        changed = ["optimizer"]
    restore(read_checkpoint(tmp_path / "one"), other, begin(other), changed=changed)
    assert other.windows_seen == 0


def test_another_loss_is_refused_and_another_metric_is_not():
    def make(loss, **options):
        model = tbptt.SequenceModel(make_core("gru"), 2, loss, seed=tbptt.make_seed(0), **options)
        return tbptt.Trainer(model, optimizers.sgd(0.1), jit_compile=False)

    trainer = make(tbptt.squared_error)
    taken = snapshot(trainer, begin(trainer))
    other = make(tbptt.absolute_error)
    message = "model.loss: 'squared_error' in the checkpoint, 'absolute_error' here"
    with pytest.raises(CheckpointError, match=message):
        restore(taken, other, begin(other))
    same = make(tbptt.squared_error, metrics={"distance": tbptt.absolute_error})
    restore(taken, same, begin(same))


def test_how_it_is_computed_may_change():
    trainer = build(core=dict(backend="scan"))
    taken = snapshot(trainer, begin(trainer))
    other = build(core=dict(backend="fused", keep="states"), jit=True)
    restore(taken, other, begin(other))


def test_a_checkpoint_without_a_record_of_the_trainer_is_taken():
    """As version 1 wrote it."""
    trainer, other = build(), build(seed=6)
    taken = snapshot(trainer, begin(trainer))
    del taken.facts["trainer"]
    restore(taken, other, begin(other))


def test_what_a_user_made_need_not_describe_itself():
    """Unknown is as good as unknown; a model of a user's is known by its class."""

    def make(rate):
        own = optimizers.GradientTransform(
            lambda parameters: (), lambda u, s, p, step: ([-rate * g for g in u], s)
        )
        optimizer = optimizers.chain(optimizers.clip_by_value(1.0), own)
        return tbptt.Trainer(AnyModel(), optimizer, jit_compile=False)

    stream = make_stream("contiguous", "plain")
    trainer, other = make(0.1), make(0.2)
    told = trainer.description["model"]
    assert (told["class"], list(told)) == ("AnyModel", ["class", "core"])
    assert told["core"]["class"] == "LSTM"
    assert trainer.description["optimizer"] == [{"name": "clip_by_value", "max_value": 1.0}, None]
    restore(snapshot(trainer, begin(trainer, stream.rows)), other, begin(other, stream.rows))


def test_the_record_of_a_trainer_keeps_its_names():
    """What a checkpoint holds is compared by name, so that another name would be another run."""
    core = dict(zoneout=(0.1, 0.2), peepholes=True, compute_dtype=tf.bfloat16, keep="states")
    trainer = build(core=core, rate=optimizers.epoch_decay(1.0, 0.5, 2, 6))
    assert json.loads(json.dumps(trainer.description)) == {
        "model": {
            "class": "LanguageModel",
            "embedding_dropout": 0.0,
            "penalties": [0.0, 0.0],
            "dropout_rate": 0.4,
            "dropout_per": "step",
            "embedding": {"class": "Embedding"},
            "core": {
                "class": "LSTM",
                "output_size": 4,
                "hidden_size": 4,
                "recurrent_dropout": 0.0,
                "weight_dropout": 0.0,
                "zoneout": [0.1, 0.2],
                "compute_dtype": "bfloat16",
                "optional": ["peepholes"],
            },
            "readout": {
                "class": "FullSoftmax",
                "hidden_size": 4,
                "vocabulary_size": VOCABULARY,
                "compute_dtype": None,
            },
        },
        "optimizer": [
            {"name": "clip_by_global_norm", "max_norm": 0.3},
            {"name": "scale_by_adam", "b1": 0.9, "b2": 0.999, "epsilon": 1e-8},
            {"name": "add_weight_decay", "rate": 0.1},
            {
                "name": "scale_by_learning_rate",
                "schedule": {
                    "name": "epoch_decay",
                    "initial": 1.0,
                    "factor": 0.5,
                    "constant_epochs": 2,
                    "windows_per_epoch": 6,
                },
            },
        ],
        "reduction": "mean",
        "seed": 5,
        "loss_scale": {"class": "LossScale", "growth_interval": 3},
        "average": True,
    }


FOREIGN = {
    "no cursor": (lambda facts: facts.pop("cursor"), "has None for a cursor"),
    "text for a cursor": (lambda facts: facts.update(cursor="ab"), "has 'ab' for a cursor"),
    "three numbers": (
        lambda facts: facts.update(cursor=[1, 2, 3]),
        r"has \[1, 2, 3\] for a cursor",
    ),
    "a part of text": (lambda facts: facts.update(best="none"), "best: nothing in the checkpoint"),
    "a part without arrays": (lambda facts: facts["best"].pop("arrays"), "best: nothing in the ch"),
    "a part without facts": (lambda facts: facts["best"].update(facts={}), "best: 'figure'"),
    "a trainer of text": (lambda facts: facts.update(trainer="adam"), "'adam' in the checkpoint"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_facts_of_a_stranger_are_refused(case):
    change, message = FOREIGN[case]
    trainer = build()
    parts = {"best": tbptt.KeepBest(trainer.model)}
    taken = snapshot(trainer, begin(trainer), parts=parts)
    change(taken.facts)
    with pytest.raises(CheckpointError, match=message):
        restore(taken, trainer, begin(trainer), parts=parts)


def test_names_of_the_checkpoint_s_own_are_refused():
    trainer = build()
    with pytest.raises(ValueError, match="'trainer' is a name of a checkpoint's own"):
        snapshot(trainer, begin(trainer), facts={"trainer": 1})


def test_other_rows_are_refused():
    trainer = build()
    with pytest.raises(
        CheckpointError, match=r"loop_state.offset: int64 \[2\] in the checkpoint, in"
    ):
        restore(snapshot(trainer, begin(trainer)), trainer, begin(trainer, rows=3))


def test_parts_go_along(tmp_path):
    trainer = build()
    best, trigger = tbptt.KeepBest(trainer.model), NonMonotonic(2)
    best.offer(3.0, 4)
    for figure in (float("nan"), float("inf"), 5.0, 4.0, 6.0):
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


def test_another_patience_is_another_run():
    trainer = build()
    taken = snapshot(trainer, begin(trainer), parts={"trigger": NonMonotonic(2)})
    with pytest.raises(CheckpointError, match="trigger: patience 2 in the record, 3 here"):
        restore(taken, trainer, begin(trainer), parts={"trigger": NonMonotonic(3)})
    del taken.facts["trigger"]["facts"]["patience"]
    restore(taken, trainer, begin(trainer), parts={"trigger": NonMonotonic(3)})


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
    trainer = tbptt.Trainer(model, optimizers.sgd(0.1), jit_compile=False)
    run_state = go_on(trainer, text(), begin(trainer), 2, {})
    found = restore(snapshot(trainer, run_state), trainer, begin(trainer))
    assert found.loop_state.state["a"].numpy().tolist() == [[16.0], [16.0]]
    assert found.loop_state.state["b"].numpy().tolist() == [[8.0], [8.0]]
