"""How far exports drift from their model, on a text, on a table, and on what a model writes."""

import numpy as np
import pytest
import tensorflow as tf

import tbptt
from tbptt.serving.exports import ExportError, open_export
from tbptt.serving.exports.data import Steps, example_steps, table_steps, text_steps
from tbptt.serving.exports.drift import difference, follow, table
from tbptt.serving.exports.original import Original, scores_of
from tbptt.serving.exports.program import Program
from tests.serving.exports.conftest import SEEDS, VOCABULARY


@pytest.fixture(scope="module")
def program(model):
    return Program(model)


def test_a_text_in_original_and_exports(exports, program, model, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("abcagfedbcab" * 4)
    data = text_steps(program, {"vocabulary": VOCABULARY}, str(text))
    ids = VOCABULARY.encode("abcagfedbcab" * 4).astype(np.int32)[:, None]
    np.testing.assert_array_equal(data.inputs["inputs"], ids[:-1])
    runners = {kind: open_export(exports[kind]).runner for kind in ("litert", "litert_int8")}
    drifts = follow(
        Original(program), runners, data, scores=scores_of(program), marks=(5, 20, 10**6), piece=8
    )
    assert [(one.name, one.steps) for one in drifts] == [
        (kind, steps) for steps in (5, 20, 47) for kind in runners
    ]
    window = tbptt.Window(tf.constant(ids[:-1]), tf.constant(ids[1:]))
    loss = model.loss(window, model.initial_state(1))[0].loss.numpy()
    for one in drifts:
        assert one.original_loss == pytest.approx(loss[: one.steps].mean(), rel=1e-5)
        assert one.loss == pytest.approx(one.original_loss, rel=1e-2)
        low, high = (1e-9, 1e-5) if one.name == "litert" else (1e-4, 0.1)
        for figure in (one.outputs, one.state, one.relative_error):
            assert low < figure < high
    lines = table(drifts).splitlines()
    assert lines[0].startswith("| export | steps |")
    assert [line.split(" | ")[1] for line in lines[2:]] == ["5", "20", "47"] * 2


class Late:
    """Runs a model whose state is lost after ten steps."""

    def __init__(self, program):
        self._original, self._read = Original(program), 0
        self.initial_state = self._original.initial_state

    def run(self, inputs, reset, state):
        self._read += len(reset)
        outputs, state = self._original.run(inputs, reset, state)
        return outputs, self.initial_state(reset.shape[1]) if self._read == 10 else state


def test_a_state_that_is_lost_is_seen_from_then_on(program):
    data = example_steps(program, 20, rows=2, seed=0)
    first, second, third = follow(
        Original(program), {"late": Late(program)}, data, marks=(9, 10), piece=1
    )
    assert (first.outputs, first.state) == (0.0, 0.0)
    assert second.outputs == 0.0
    assert second.state > 0.01
    assert third.outputs > 0.001
    assert third.loss is None


def test_resets_and_weights_count(program):
    data = example_steps(program, 6, rows=1, seed=0)
    reset, weight = np.zeros([6, 1], bool), np.ones([6, 1])
    reset[3] = True
    weight[1:] = 0.0

    def last(data):
        return follow(Original(program), {"x": Original(program)}, data, scores=scores_of(program))[
            0
        ]

    alone = last(data.part(slice(1)))
    assert last(data._replace(weight=weight)).original_loss == pytest.approx(alone.original_loss)
    assert last(data._replace(reset=reset)).original_loss != last(data).original_loss
    assert last(data._replace(targets=None)).loss is None


def test_differences_that_are_not_finite_are_infinite():
    a = {"x": np.array([1.0, np.nan])}
    assert difference(a, {"x": np.array([1.0, 2.0])}) == np.inf
    assert difference({"x": np.zeros([2])}, {"x": np.zeros([3])}) == np.inf
    inf = {"x": np.array([np.inf])}
    assert difference(inf, inf) == 0.0


def forecaster(input_size):
    core = tbptt.GRU(input_size, 4, seed=SEEDS[0])
    return Program(tbptt.SequenceModel(core, 1, tbptt.squared_error, seed=SEEDS[1]))


LINES = "a,b\n" + "".join(f"{k},{k % 3}\n" for k in range(300))


def test_a_table_is_prepared_as_in_training(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text(LINES)
    standardizer = tbptt.Standardizer(np.array([10.0, 1.0]), np.array([2.0, 1.0]))
    plain = table_steps(forecaster(2), {"standardizer": standardizer}, str(path))
    assert plain.inputs["inputs"].shape == (300, 1, 2)
    np.testing.assert_allclose(plain.inputs["inputs"][3, 0], [-3.5, -1.0])
    prepared = {
        "standardizer": standardizer, "columns": ["a", "b"], "targets": ["a"], "horizon": 2,
        "path": False, "masked": False,
    }  # fmt: skip
    program = forecaster(4)
    data = table_steps(program, prepared, str(path))
    assert data.weight.sum() == 298
    np.testing.assert_allclose(data.inputs["inputs"][3, 0], [-3.5, -1.0, 0.5, -2.0])
    np.testing.assert_allclose(data.targets[:2, 0, 0], [-4.0, -3.5])
    assert np.flatnonzero(data.reset).tolist()[:1] == [0]
    *_, drift = follow(
        Original(program), {"x": Original(program)}, data.part(slice(40)), scores=scores_of(program)
    )
    window = tbptt.Window(*(tf.constant(x[:40]) for x in (data.inputs["inputs"], data.targets)))
    model = program.model
    loss = np.mean(model.loss(window, model.initial_state(1))[0].loss)
    assert drift.loss == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b,c\n1,2,3\n4,5,6\n", r"has 3 columns of numbers, but the model reads .*Give a table"),
        ("a,b\n1,\n4,5\n", "has missing values, which the model does not know"),
    ],
)
def test_a_table_that_does_not_fit(tmp_path, text, message):
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(ExportError, match=message):
        table_steps(forecaster(2), {}, str(path))
    with pytest.raises(ExportError, match=r"has no vocabulary\. Give a table instead"):
        text_steps(forecaster(2), {}, str(path))


def test_a_text_that_does_not_fit(program, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("a")
    with pytest.raises(ExportError, match="has 1 tokens, but at least 2 are needed"):
        text_steps(program, {"vocabulary": VOCABULARY}, str(path))
    path.write_text("abz")
    with pytest.raises(ValueError, match="'z' on line 1 is not among the 7 tokens"):
        text_steps(program, {"vocabulary": VOCABULARY}, str(path))


def test_made_up_steps_fit_what_a_model_reads():
    steps = example_steps(forecaster(3), 5, rows=2, seed=0)
    assert isinstance(steps, Steps)
    assert steps.inputs["inputs"].shape == (5, 2, 3)
    assert steps.targets is None
