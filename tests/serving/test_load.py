"""A run's folder alone makes its model again; a folder that cannot is refused with one sentence."""

import json
import shutil

import numpy as np
import pytest
import tensorflow as tf

import tbptt
from tbptt import losses
from tbptt.experiment.model_files import preprocessing_from_json, preprocessing_to_json
from tbptt.layers import initializers
from tbptt.layers.running_mean import RunningMean
from tbptt.rebuild import CLASSES, describe, rebuild
from tbptt.serving.load import LoadError, load
from tbptt.streams.files import DataError
from tbptt.variables import named_parameters
from tests.experiment import script

SEED = tbptt.make_seed(3)


def language_model(core=None, **options):
    core = core or tbptt.LSTM(3, 4, seed=SEED)
    return tbptt.LanguageModel(7, 3, core, seed=SEED, **options)


def sequence_model(core=None, loss=tbptt.squared_error, **options):
    return tbptt.SequenceModel(
        core or tbptt.GRU(3, 4, seed=SEED), 2, loss, seed=SEED, dropout_rate=0.5, **options
    )


def own_loss(outputs, targets):
    return tbptt.squared_error(outputs, targets)


MODELS = {
    "lstm": lambda: language_model(
        tbptt.LSTM(
            3, np.int64(4), seed=SEED, initializer=initializers.uniform(0.1), peepholes=True,
            layer_norm=True, projection_size=2, zoneout=(0.1, 0.2), learn_initial_state=True,
            recurrent_dropout=0.2, weight_dropout=0.1, backend="scan",
        ),
        dropout_rate=0.1, activation_penalty=2.0, name="named",
    ),
    "bfloat16": lambda: language_model(
        tbptt.LSTM(3, 4, seed=SEED, compute_dtype=tf.bfloat16, keep="states"),
        compute_dtype=tf.bfloat16,
    ),
    "float64": lambda: sequence_model(
        tbptt.GRU(3, 4, seed=SEED, dtype=tf.float64), dtype=tf.float64
    ),
    "stack": lambda: language_model(
        tbptt.Stack(
            [tbptt.GRU(3, 4, seed=SEED), tbptt.LSTM(4, 3, seed=SEED)],
            dropout_rate=0.3, dropout_per="window",
        ),
        tied=True,
    ),
    "tied and chunked": lambda: language_model(
        tbptt.LSTM(3, 3, seed=SEED),
        tied=True,
        readout=lambda table: tbptt.ChunkedSoftmax(3, 7, seed=SEED, table=table, chunk=4),
    ),
    "chunked": lambda: language_model(readout=tbptt.ChunkedSoftmax(4, 7, seed=SEED, chunk=4)),
    "adaptive": lambda: language_model(
        readout=tbptt.AdaptiveSoftmax(4, 7, cutoffs=[2, 4], seed=SEED)
    ),
    "sampled": lambda: language_model(
        readout=tbptt.SampledSoftmax(4, 7, samples=3, seed=SEED, chunk=4)
    ),
    "sequence": lambda: sequence_model(
        tbptt.Stack([tbptt.GRU(1, 4, seed=SEED), RunningMean(4)]),
        metrics={"nll": tbptt.squared_error, "own": own_loss}, bypass=2,
    ),
    "own loss": lambda: sequence_model(loss=own_loss),
    "encoder and decoder": lambda: tbptt.EncoderDecoder(
        tbptt.GRU(1, 4, seed=SEED), tbptt.LSTM(2, 3, seed=SEED), 2, tbptt.squared_error,
        steps=3, seed=SEED, teacher_forcing=0.5, bypass=2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_described_and_made_again_a_model_is_the_same(name):
    model = MODELS[name]()
    description = json.loads(json.dumps(describe(model)))
    made = rebuild(description)
    assert json.loads(json.dumps(describe(made))) == description
    parameters = named_parameters(model)
    assert list(named_parameters(made)) == list(parameters)
    for name_, variable in named_parameters(made).items():
        variable.assign(parameters[name_])
    rng = np.random.default_rng(0)
    inputs = (
        tf.constant(rng.integers(0, 7, [5, 2]), tf.int32)
        if isinstance(model, tbptt.LanguageModel)
        else tf.constant(rng.normal(size=[5, 2, 3]), model.readout.w.dtype)
    )
    for found, expected in zip(
        tf.nest.flatten(made(inputs, made.initial_state(2))),
        tf.nest.flatten(model(inputs, model.initial_state(2))),
        strict=True,
    ):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


def test_all_classes_with_parameters_can_be_made_again():
    public = {name for name in tbptt.__all__ if isinstance(getattr(tbptt, name), type)}
    modules = {name for name in public if issubclass(getattr(tbptt, name), tf.Module)}
    assert modules - {"Average", "LossScale", "Trainer"} == set(CLASSES) - {"RunningMean"}


def test_a_loss_of_ones_own_is_missed_only_when_it_is_needed():
    made = rebuild(json.loads(json.dumps(describe(sequence_model(loss=own_loss)))))
    window = tbptt.Window(tf.zeros([1, 1, 3]), tf.zeros([1, 1, 2]))
    with pytest.raises(ValueError, match="The loss 'own_loss' is not a part of tbptt"):
        made.loss(window, made.initial_state(1))


class OwnLSTM(tbptt.LSTM):
    """A subclass may do anything, so it is not the library's."""


@pytest.mark.parametrize(
    ("model", "path"),
    [
        (lambda: language_model(OwnLSTM(3, 4, seed=SEED)), "model.core is 'OwnLSTM'"),
        (
            lambda: language_model(
                tbptt.Stack(
                    [
                        tbptt.GRU(3, 4, seed=SEED),
                        tbptt.Recurrent(own_loss, lambda rows: tf.zeros([rows]), output_size=4),
                    ]
                )
            ),
            "model.core.cores.1.cell is 'own_loss'",
        ),
    ],
)
def test_a_part_of_ones_own_is_named(model, path):
    with pytest.raises(ValueError, match=path):
        rebuild(json.loads(json.dumps(describe(model()))))


GRU = {"class": "GRU", "input_size": 2, "hidden_size": 3}


@pytest.mark.parametrize(
    ("description", "message"),
    [
        (None, "model: there is no None"),
        ([], "model: there is no None"),
        ({}, "model: there is no None"),
        ({"class": ["GRU"]}, r"model: there is no \['GRU'\]"),
        ({"class": "os.system"}, "model: there is no 'os.system' in this version"),
        (GRU | {"speed": 9}, "model: GRU has no argument 'speed'"),
        (GRU | {"seed": [0, 0]}, "model: GRU has no argument 'seed'"),
        ({"class": "GRU", "input_size": 2}, "model: GRU cannot be made: .*hidden_size"),
        (GRU | {"hidden_size": -1}, "model: GRU cannot be made: "),
        (GRU | {"hidden_size": "many"}, "model: GRU cannot be made: "),
        (GRU | {"dtype": {"dtype": "string"}}, "model.dtype: there is no 'string'"),
        (GRU | {"backend": "magic"}, "model: GRU cannot be made: backend"),
        ({"class": "Stack", "cores": []}, "model: Stack cannot be made"),
        ({"class": "Stack", "cores": [GRU, 5]}, "model: Stack cannot be made"),
        ({"class": "Stack", "cores": {"class": "GRU"}}, "model.cores: GRU cannot be made"),
        (
            {"class": "SequenceModel", "core": GRU, "output_size": 2, "loss": {"loss": "hinge"}},
            "model.loss: there is no 'hinge'",
        ),
    ],
)
def test_a_damaged_description_is_refused(description, message):
    with pytest.raises(ValueError, match=message):
        rebuild(description)


def test_cudnn_is_replaced_because_it_needs_a_gpu():
    assert describe(rebuild(GRU | {"backend": "cudnn"}))["backend"] == "auto"


def test_preprocessing_comes_back():
    standardizer = tbptt.Standardizer(
        np.array([0.1, 3.0], np.float32), np.array([1.0, 1 / 3], np.float32)
    )
    given = {
        "vocabulary": tbptt.Vocabulary.of("héllo\n", "characters"),
        "standardizer": standardizer,
        "labels": ["no", "yes"],
        "horizon": 3,
    }
    written = json.loads(json.dumps(preprocessing_to_json(given)))
    found = preprocessing_from_json(written, "here")
    assert found["vocabulary"] == given["vocabulary"]
    values = np.array([[0.3, 0.7]], np.float32)
    np.testing.assert_array_equal(found["standardizer"].apply(values), standardizer.apply(values))
    assert (found["labels"], found["horizon"]) == (["no", "yes"], 3)
    with pytest.raises(TypeError, match=r"preprocessing\['x'\] cannot be written as JSON"):
        preprocessing_to_json({"x": np.zeros(2)})
    with pytest.raises(TypeError, match=r"preprocessing\['x'\] cannot be written as JSON"):
        preprocessing_to_json({"x": float("nan")})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"v": {"vocabulary": None}}, "here, 'v', has no list of tokens"),
        (
            {"v": {"vocabulary": {"kind": "words", "tokens": ["a", "a"]}}},
            "here, 'v', is no vocabulary: .* 'a' twice",
        ),
        ({"s": {"standardizer": {"mean": [1]}}}, "here, 's', has no lists of numbers"),
        (
            {"s": {"standardizer": {"mean": [1], "deviation": [0], "dtype": "float32"}}},
            "here, 's', must have as many finite means as deviations above 0",
        ),
    ],
)
def test_damaged_preprocessing_is_refused(content, message):
    with pytest.raises(DataError, match=message):
        preprocessing_from_json(content, "here")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of a script of a user's own."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    settings = script.Settings(hidden=8, windows=3, window_length=8, jit_compile=False)
    script.main(settings, tbptt.experiment.Options(str(folder)))
    return folder


def test_a_run_is_loaded(run):
    loaded = load(run)
    assert loaded.settings["hidden"] == 8
    assert loaded.settings["experiment"] == "script"
    assert loaded.result["windows"] == 3
    assert loaded.preprocessing == {}
    with np.load(run / "best_parameters.npz", allow_pickle=False) as stored:
        for name, variable in named_parameters(loaded.model).items():
            np.testing.assert_array_equal(variable, stored[name])
    text = np.fromfile(script.__file__, np.uint8)[:200]
    stream = tbptt.ContiguousStream(text, rows=1, window_length=8, vocabulary_size=256)
    assert losses.bits(tbptt.Evaluator(loaded.model, stream, jit_compile=False)().loss) < 8


def test_a_model_that_is_given_gets_the_parameters(run):
    core = tbptt.LSTM(64, 8, seed=SEED)
    model = tbptt.LanguageModel(256, 64, core, seed=SEED)
    loaded = load(run, model)
    assert loaded.model is model
    np.testing.assert_array_equal(core.w_h, load(run).model.core.w_h)
    with pytest.raises(LoadError, match=r"of another model\. .*embedding\.table"):
        load(run, language_model())


def damage(name, change):
    """Returns a function that changes one JSON file of a run."""

    def apply(folder):
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))

    return apply


def cut(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-30])


def remove(name):
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (shutil.rmtree, "There is no folder"),
        (remove("settings.json"), "holds no run: there is no settings.json"),
        (cut("settings.json"), "settings.json in .* cannot be read"),
        (remove("result.json"), "is not finished. Give its command again"),
        (cut("result.json"), "result.json in .* cannot be read"),
        (remove("model.json"), "There is no file .*model.json"),
        (cut("model.json"), "model.json' is not JSON"),
        (damage("model.json", lambda c: c.update(version=2)), "is of version 2, and this is tbptt"),
        (damage("model.json", lambda c: c.pop("version")), "is of version None"),
        (damage("model.json", lambda c: c.pop("model")), "model.json': model: there is no None"),
        (
            damage("model.json", lambda c: c.update(model={"own": "Mine"})),
            r"model is 'Mine', which is not a part of tbptt.*load\(logdir, model=model\)",
        ),
        (
            damage("model.json", lambda c: c["model"]["core"].update(hidden_size=9)),
            "best_parameters.npz' is of another model",
        ),
        (remove("preprocessing.json"), "There is no file .*preprocessing.json"),
        (cut("best_parameters.npz"), "best_parameters.npz' cannot be read"),
        (remove("best_parameters.npz"), "has no best_parameters.npz: its experiment keeps no"),
    ],
)
def test_a_folder_that_cannot_be_loaded_is_refused(run, tmp_path, harm, message):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    harm(folder)
    with pytest.raises(LoadError, match=message):
        load(folder)


def test_an_unfinished_run_is_loaded_if_asked(run, tmp_path):
    folder = tmp_path / "seeds" / "seed-0"
    shutil.copytree(run, folder)
    (folder / "result.json").unlink()
    assert load(folder, unfinished=True).result == {}
    with pytest.raises(LoadError, match=r"holds 1 runs\. Give .* as .*seed-0"):
        load(tmp_path / "seeds")
    (folder / "best_parameters.npz").unlink()
    with pytest.raises(LoadError, match="the run has not been validated yet"):
        load(folder, unfinished=True)
