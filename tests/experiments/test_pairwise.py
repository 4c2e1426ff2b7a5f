"""Every two values of two settings, in one run at least: the same as on the reference backend."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator

import numpy as np
import pytest
import tensorflow as tf

import tbptt
from tbptt import experiment
from tbptt.rebuild import describe
from tbptt.serving.load import LoadError, load
from tests.experiments import conftest
from tests.experiments.pairwise import TABLES
from tools import prepare

TEXT = "the cat sat on the mat\nthe end of the cat\n" * 20
# Largest relative difference: of losses, and of all variables together, to what training changed.
TOLERANCES = {"float32": 2e-3, "bfloat16": 5e-2}


CASES = [(name, k) for name, table in TABLES.items() for k in range(len(table.combinations))]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Every kind of file that an experiment reads."""
    folder = tmp_path_factory.mktemp("data")
    conftest.write_files(folder)
    (folder / "text.txt").write_text(TEXT)
    (folder / "documents.jsonl").write_text(
        "".join(json.dumps({"text": TEXT[k : 2 * k + 20]}) + "\n" for k in range(10))
    )
    for kind in ("characters", "bytes", "words"):
        for name, lines in (("lines", True), ("text", False)):
            prepare.prepare(folder / f"{kind}-{name}", [folder / "text.txt"], kind, lines, None)
    return folder


def settings_of(name, values):
    """Settings that train for two windows."""
    common = dict(config="test", jit_compile=False, max_windows=2, windows_per_call=2)
    return TABLES[name].module.Settings(**common, **values)


class RecordedTrainer(tbptt.Trainer):
    """A trainer that remembers its first and last variables, and the loss of every call."""

    made: list["RecordedTrainer"]

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.first = self.last = self.numbers()
        self.losses = []
        self.made.append(self)

    def numbers(self):
        """All numbers in its variables, one after another."""
        variables = [variable for variable in self.variables if variable.dtype.is_floating]
        return np.concatenate([np.ravel(variable.numpy()) for variable in variables])

    def __call__(self, *given):
        loop_state, metrics = super().__call__(*given)
        self.losses.append(metrics.read().loss)
        return loop_state, metrics


class RecordedEvaluator(tbptt.Evaluator):
    """An evaluator that remembers what it found; or only says again what was found before.

    Of a run it evaluates one part, without learning and, if it is asked to, with: another part
    would be another program of the same code, and half of the time of these tests.
    """

    found: list[tbptt.Evaluation]
    again: Iterator[tbptt.Evaluation] | None
    first: dict[bool, "RecordedEvaluator"]  # by whether it learns

    def __call__(self):
        if self.again is not None:
            return next(self.again)
        evaluator = self.first.setdefault(self._optimizer is None, self)
        self.found.append(super(RecordedEvaluator, evaluator).__call__())
        return self.found[-1]


class TrainedError(Exception):
    """Ends an experiment when it has trained: its evaluation is not wanted."""


@contextlib.contextmanager
def eagerly(eager):
    """Trains without tracing: two windows on the reference take less time so."""
    tf.config.run_functions_eagerly(eager)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(False)


def trained(monkeypatch, name, settings, logdir, *, again=None):
    """Runs an experiment; returns its trainers, its evaluations and the figures of its result.

    With evaluations to say `again` it only trains, as those would have it, and traces nothing.
    """

    def train(trainer, *given, **options):
        run_state = actual_train(trainer, *given, **options)
        trainer.last = trainer.numbers()
        if again is not None and name != "memory":  # which trains several times
            raise TrainedError
        return run_state

    actual_train = tbptt.training.loop.train
    monkeypatch.setattr(RecordedTrainer, "made", [], raising=False)
    monkeypatch.setattr(RecordedEvaluator, "found", [], raising=False)
    monkeypatch.setattr(RecordedEvaluator, "first", {}, raising=False)
    evaluations = None if again is None else iter(again)
    monkeypatch.setattr(RecordedEvaluator, "again", evaluations, raising=False)
    monkeypatch.setattr(tbptt, "Trainer", RecordedTrainer)
    monkeypatch.setattr(tbptt, "Evaluator", RecordedEvaluator)
    monkeypatch.setattr(tbptt, "train", train)
    options = experiment.Options(str(logdir), strategy="one")
    result = {}
    with contextlib.suppress(TrainedError), eagerly(again is not None):
        result = TABLES[name].module.main(settings, options)
    figures = [value for key, value in result.items() if isinstance(value, float)]
    return RecordedTrainer.made, RecordedEvaluator.found, figures


def check_kept(logdir, trained_model, preprocessing):
    """What a run keeps is loaded: the model that was trained, and what is known of its data."""
    if preprocessing is None:
        with pytest.raises(LoadError, match="its experiment keeps no model"):
            load(logdir)
        return
    loaded = load(logdir)
    assert describe(loaded.model) == describe(trained_model)
    expected = tbptt.named_parameters(trained_model)
    for parameter, variable in tbptt.named_parameters(loaded.model).items():
        np.testing.assert_array_equal(variable, expected[parameter])
    assert sorted(loaded.preprocessing) == preprocessing
    if "targets" in preprocessing:
        assert len(loaded.preprocessing["targets"]) == loaded.model.readout.w.shape[1]


@pytest.mark.parametrize(("name", "number"), CASES)
def test_equals_the_reference_backend(monkeypatch, tmp_path, data, name, number):
    monkeypatch.chdir(data)
    settings = settings_of(name, TABLES[name].combinations[number])
    reference = dataclasses.replace(settings, backend="reference")
    if hasattr(settings, "keep"):
        reference = dataclasses.replace(reference, keep="gates")
    ours, evaluations, figures = trained(monkeypatch, name, settings, tmp_path / "run")
    theirs, _, _ = trained(monkeypatch, name, reference, tmp_path / "reference", again=evaluations)
    tolerance = TOLERANCES[getattr(settings, "precision", "float32")]
    assert figures
    assert np.isfinite(figures).all() or settings.valid_fraction == 0
    check_kept(tmp_path / "run", ours[-1].model, TABLES[name].preprocessing)
    for one, other in zip(ours, theirs, strict=True):
        assert list(one.losses) == pytest.approx(list(other.losses), rel=tolerance, nan_ok=True)
        changed = np.linalg.norm(other.last - other.first)
        assert changed > 0
        assert np.linalg.norm(one.last - other.last) <= tolerance * changed


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        pytest.param(name, rule, id=f"{name}-{rule.message}")
        for name, table in TABLES.items()
        for rule in table.rules
    ],
)
def test_what_does_not_go_together_is_refused(monkeypatch, tmp_path, data, name, rule):
    monkeypatch.chdir(data)
    table = TABLES[name]
    with pytest.raises(experiment.UsageError, match=rule.message):  # noqa: PT012 (the settings refuse too)
        with experiment.usage_errors():
            settings = settings_of(name, table.expand(table.simplest | rule.example))
        table.module.main(settings, experiment.Options(str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", TABLES)
def test_every_setting_is_in_the_table(name):
    table = TABLES[name]
    fields = {field.name for field in dataclasses.fields(table.module.Settings)}
    assert fields == set(table.expand(table.simplest)) | set(table.left_out)
    assert all(len(values) > 1 or name in ("data", "keys") for name, values in table.values.items())
