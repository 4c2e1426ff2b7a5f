"""The experiment from its settings to its result, three windows at a time; and users' mistakes."""

import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing import event_accumulator, plugin_event_accumulator

import tbptt
from experiments import language_model, language_text
from tbptt.experiment import UnfinishedError, UsageError
from tbptt.serving.load import load
from tbptt.streams import corpus
from tests.experiments import conftest
from tools import prepare

SMALL = dict(window_length=5, embedding=3, sample_length=5, eval_every=2, histogram_every=2,
             valid_rows=2)  # fmt: skip
TEXT = "the cat sat on the mat\nthe end of the cat\n" * 12


def trained(logdir, **settings):
    return conftest.run_small(language_model, logdir, **(SMALL | settings))


@pytest.fixture
def corpus_file(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text(TEXT)
    return str(path)


@pytest.mark.parametrize("config", ["char", "ptb_small", "awd_ptb"])
def test_preset_runs(tmp_path, corpus_file, config):
    texts = (
        {}
        if config == "char"
        else dict.fromkeys(["train_text", "valid_text", "test_text"], corpus_file)
    )
    # All of Python's own documentation, by windows of 5, would take long to evaluate.
    short = {"window_length": 200, "valid_fraction": 0.01, "test_fraction": 0.01}
    sizes = short if config == "char" else {"embedding": 4}
    if config == "awd_ptb":
        sizes |= {"jitter": 1.0, "top_hidden": 4}
    result = trained(tmp_path / "run", config=config, **texts, **sizes)
    assert result["metric"] == ("bits_per_character" if config == "char" else "perplexity")
    assert result["windows"] == 3
    assert result["tokens"] == 3 * 2 * {"char": 200, "ptb_small": 5, "awd_ptb": 3}[config]
    assert np.isfinite([result["valid"], result["test"], result["tokens_per_second"]]).all()
    assert result["seconds"] > 0


@pytest.mark.parametrize("config", ["ptb_medium", "ptb_large"])
def test_larger_presets_differ_from_the_small_one_in_sizes_alone(config):
    small, larger = (language_model.Settings.presets[name] for name in ("ptb_small", config))
    assert set(larger) == set(small)
    assert {name for name in small if larger[name] != small[name]} <= {
        "window_length", "embedding", "hidden", "dropout", "init_scale", "decay",
        "constant_epochs", "max_epochs", "clip_norm",
    }  # fmt: skip


def test_compiled_run_gives_the_figures_of_a_plain_one(tmp_path, corpus_file):
    results = [
        trained(tmp_path / str(compiled), corpus=corpus_file, optimizer="adam",
                reduction="sum_over_window", jit_compile=compiled)
        for compiled in (True, False)
    ]  # fmt: skip
    for key in ("valid", "test"):
        assert np.isclose(results[0][key], results[1][key], rtol=1e-4)


def test_chunked_starts_and_learns_as_full_does(tmp_path, corpus_file):
    results = [
        trained(tmp_path / readout, corpus=corpus_file, readout=readout, **more)
        for readout, more in (("full", {}), ("chunked", dict(readout_chunk=5)))
    ]
    for key in ("valid", "test"):
        assert np.isclose(results[0][key], results[1][key], rtol=1e-4)


@pytest.mark.parametrize("truncation", [dict(stride=2, burn_in=1), dict(jitter=1.0, cut=0.2)])
def test_documents(tmp_path, truncation):
    path = tmp_path / "documents.jsonl"
    path.write_text("".join(json.dumps({"text": TEXT[k:]}) + "\n" for k in range(0, 60, 6)))
    result = trained(tmp_path / "run", documents=str(path), **truncation)
    assert np.isfinite([result["valid"], result["test"]]).all()
    assert 0.5 < result["utilisation"] <= 1
    assert load(tmp_path / "run").preprocessing["vocabulary"].boundary == 0


def test_prepared_corpus(tmp_path, corpus_file):
    """Of one document a line, and of one text."""
    for name, lines in (("lines", True), ("text", False)):
        prepare.prepare(tmp_path / name, [pathlib.Path(corpus_file)], "words", lines, None)
    result = trained(tmp_path / "run", prepared=str(tmp_path / "lines"), tokens="words")
    assert result["metric"] == "perplexity"
    assert np.isfinite([result["valid"], result["test"]]).all()
    settings = language_model.Settings(prepared=str(tmp_path / "text"), valid_rows=2)
    data = language_text.load(settings)
    assert all(isinstance(part, np.memmap) for part in data.parts)


@pytest.mark.parametrize(
    ("kind", "metric"),
    [("words", "perplexity"), ("characters", "bits_per_character"), ("bytes", "bits_per_byte")],
)
def test_prepared_corpus_says_what_it_is_of(tmp_path, corpus_file, kind, metric):
    prepare.prepare(tmp_path / "out", [pathlib.Path(corpus_file)], kind, False, None)
    readout = dict(readout="adaptive", cutoffs="2,5") if kind == "words" else {}
    result = trained(tmp_path / "run", prepared=str(tmp_path / "out"), **readout)
    assert result["metric"] == metric


def loaded(**settings):
    return language_text.load(language_model.Settings(**{"valid_rows": 1, **settings}))


def test_vocabulary_is_of_the_training_part(tmp_path, caplog):
    """Of words and characters, one text and documents: what only the test part has is unknown."""
    (tmp_path / "a.txt").write_text("a b " * 45 + "a c a z a y a b a b ")
    words = loaded(corpus=str(tmp_path / "a.txt"), tokens="words")
    assert words.vocabulary.tokens == ("a", "b", "<unk>")
    assert words.parts[2].tolist() == [0, 2, 0, 2, 0, 2, 0, 1, 0, 1]
    characters = loaded(corpus=str(tmp_path / "a.txt"))
    assert characters.vocabulary.tokens == (" ", "a", "b", "\ufffd")
    assert characters.vocabulary.decode(characters.parts[2])[-20:] == "a � a � a � a b a b "
    of_all = tbptt.Vocabulary.of("a b ", "characters")  # as it was where nothing is unknown
    (tmp_path / "b.txt").write_text("a b " * 50)
    assert loaded(corpus=str(tmp_path / "b.txt")).vocabulary == of_all
    (tmp_path / "c.jsonl").write_text('{"text": "b a a"}\n' * 8 + '{"text": "c a"}\n' * 2)
    documents = loaded(documents=str(tmp_path / "c.jsonl"), tokens="words", test_documents=1)
    assert documents.vocabulary.tokens == ("a", "b", "<eos>", "<unk>")
    assert documents.parts[1].values.tolist() == documents.parts[2].values.tolist() == [3, 0]


def test_default_corpus_has_no_unknown_character():
    data = loaded(corpus="python-docs")
    text = corpus.python_docs()
    assert data.vocabulary == tbptt.Vocabulary.of(text, "characters")
    assert data.vocabulary.decode(np.concatenate(data.parts)) == text


def test_bytes_are_of_any_file(tmp_path):
    content = bytes(range(256)) * 4
    (tmp_path / "a.bin").write_bytes(content)
    data = loaded(corpus=str(tmp_path / "a.bin"), tokens="bytes")
    assert b"".join(part.astype(np.uint8).tobytes() for part in data.parts) == content
    data = loaded(documents=str(tmp_path / "a.bin"), tokens="bytes")
    assert sum(len(part) for part in data.parts) == len(content.strip().split(b"\n"))
    files = dict.fromkeys(["train_text", "valid_text", "test_text"], str(tmp_path / "a.bin"))
    assert len(loaded(tokens="bytes", **files).parts[2]) == len(content)


def test_run_leaves_what_a_run_leaves(tmp_path, corpus_file, capsys):
    logdir = tmp_path / "run"
    more = dict(activation_penalty=1.0, options=dict(profile_windows="1:2"))
    result = trained(logdir, corpus=corpus_file, **more)
    printed = capsys.readouterr().out.strip().splitlines()
    assert json.loads(printed[-1]) == result
    settings = json.loads((logdir / "settings.json").read_text())
    assert settings["rows"] == 2
    assert load(logdir).preprocessing["vocabulary"].kind == "characters"
    with np.load(logdir / "best_parameters.npz", allow_pickle=False) as parameters:
        assert "core.cores.0.w_h" in parameters.files
    events = event_accumulator.EventAccumulator(str(logdir)).Reload()
    tags = set(events.Tags()["tensors"])
    assert {
        "loss/train", "penalty/train", "loss/valid", "sample", "optim/grad_norm",
        "optim/learning_rate", "state/hidden_rms", "speed/tokens_per_second", "settings",
        "result/test", "result/valid",
        "parameters/core.cores.0.w_h", "state/0/hidden",
    } <= tags  # fmt: skip
    assert [event.step for event in events.Tensors("loss/valid")] == [2, 3]
    test = tf.make_ndarray(events.Tensors("result/test")[0].tensor_proto).item()
    assert np.isclose(test, result["test"])
    assert list(logdir.rglob("*.xplane.pb"))


def test_best_parameters_by_validation_are_the_ones_tested(tmp_path, corpus_file):
    """A learning rate that ruins the model: what is tested is from before."""
    result = trained(
        tmp_path / "run", corpus=corpus_file, max_windows=12, eval_every=1, clip_norm=0.0,
        optimizer="sgd", learning_rate=30.0, schedule="constant",
    )  # fmt: skip
    events = event_accumulator.EventAccumulator(str(tmp_path / "run")).Reload()
    losses = [tf.make_ndarray(e.tensor_proto).item() for e in events.Tensors("loss/valid")]
    assert min(losses) < losses[-1]
    assert np.isclose(result["valid"], min(losses) / np.log(2), rtol=1e-5)


def test_dynamic_evaluation_is_reported_beside_the_static_one(tmp_path, corpus_file):
    result = trained(tmp_path / "dynamic", corpus=corpus_file, dynamic_rate=1e-2)
    assert result["dynamic_test"] < result["test"]  # a text that repeats itself
    assert result["dynamic_valid"] != result["valid"]


def test_logdir_that_holds_a_run(tmp_path, corpus_file):
    """A finished one is left alone; --restart keeps it aside; other settings are refused."""
    logdir = tmp_path / "run"
    earlier = trained(logdir, corpus=corpus_file)
    with pytest.raises(UsageError, match=r"is finished. Use --restart to run it again"):
        trained(logdir, corpus=corpus_file)
    again = trained(logdir, corpus=corpus_file, options=dict(restart=True))
    for key in ("valid", "test", "settings"):
        assert earlier[key] == again[key]
    assert json.loads((tmp_path / "run.1" / "result.json").read_text()) == earlier
    before = {path.name: path.read_bytes() for path in logdir.iterdir() if path.is_file()}
    with pytest.raises(UsageError, match=r"holds a run with other settings \(seed=0 there, 1 "):
        trained(logdir, corpus=corpus_file, seed=1)
    assert before == {path.name: path.read_bytes() for path in logdir.iterdir() if path.is_file()}
    (logdir / "settings.json").write_text("{")
    with pytest.raises(UsageError, match=r"settings\.json in .* cannot be read"):
        trained(logdir, corpus=corpus_file)


def losses(logdir):
    """As TensorBoard shows them: the line, without what was written and then not saved."""
    events = plugin_event_accumulator.EventAccumulator(str(logdir)).Reload()
    return [
        (event.step, tf.make_ndarray(event.tensor_proto).item())
        for event in events.Tensors("loss/train")
    ]


def test_interrupted_run_goes_on_as_if_it_had_not_been(tmp_path, corpus_file):
    """Law 7 through the whole experiment: figures, parameters and the line in TensorBoard."""
    more = dict(corpus=corpus_file, max_windows=10, dropout=0.3, average_patience=1)
    whole = trained(tmp_path / "whole", **more)
    logdir = tmp_path / "run"
    every = dict(save_every="4")
    message = r"saved at window 2 of 10, because 1e-09 minutes are over\. The same command goes on"
    with pytest.raises(UnfinishedError, match=message):
        trained(logdir, options=dict(max_minutes=1e-9, **every), **more)
    with pytest.raises(UnfinishedError, match=r"saved at window 4 of 10"):
        trained(logdir, options=dict(max_minutes=1e-9, **every), **more)
    assert not (logdir / "result.json").exists()
    result = trained(logdir, options=every, **more)
    for key in ("valid", "test", "windows", "settings"):
        assert result[key] == whole[key]
    with (
        np.load(logdir / "best_parameters.npz", allow_pickle=False) as ours,
        np.load(tmp_path / "whole" / "best_parameters.npz", allow_pickle=False) as theirs,
    ):
        for name in theirs.files:
            assert ours[name].tobytes() == theirs[name].tobytes()
    assert losses(logdir) == losses(tmp_path / "whole")


def test_run_goes_on_only_with_the_data_it_was_begun_with(tmp_path, corpus_file):
    more = dict(corpus=corpus_file, max_windows=10)
    with pytest.raises(UnfinishedError):
        trained(tmp_path / "run", options=dict(max_minutes=1e-9), **more)
    text = pathlib.Path(corpus_file).read_text()
    pathlib.Path(corpus_file).write_text(text.replace("mat", "tam", 1))
    with pytest.raises(UsageError, match=r"The data have changed since the run in .* was begun"):
        trained(tmp_path / "run", **more)


BAD = {
    "missing file": (dict(corpus="no/such.txt"), "There is no file 'no/such.txt'"),
    "missing train_text": (
        dict(config="ptb_small", corpus="", vocabulary_size=0),
        "--config=ptb_small needs --train_text",
    ),
    "one of three": (dict(train_text="a.txt", corpus=""), "go together"),
    "rows": (dict(rows=0), r"rows \(0\) must be at least 1"),
    "window": (dict(window_length=-1), r"window_length \(-1\) must be at least 1"),
    "calls": (dict(windows_per_call=0), r"windows_per_call \(0\) must be at least 1"),
    "layers": (dict(layers=0), r"layers \(0\) must be at least 1"),
    "too short": (dict(rows=1000), r"too few for rows=1000 .* Use at most \d+ rows"),
    "cell": (dict(cell="rnn"), r"cell \('rnn'\) must be one of lstm, gru"),
    "backend": (dict(backend="fast"), r"backend \('fast'\) must be one of auto"),
    "optimizer": (dict(optimizer="lion"), r"optimizer \('lion'\) must be one of sgd"),
    "schedule": (dict(schedule="step"), r"schedule \('step'\) must be one of constant"),
    "reduction": (dict(reduction="max"), r"reduction \('max'\) must be one of mean"),
    "tokens": (dict(tokens="syllables"), r"tokens \('syllables'\) must be one of"),
    "dropout": (dict(dropout=1.0), r"dropout \(1.0\) must be below 1"),
    "per": (dict(dropout_per="batch"), r"per \('batch'\) must be one of"),
    "tied": (dict(tied=True), r"embedding_size \(3\) equal to the core's output size \(4\)"),
    "stride": (dict(stride=9), r"stride \(9\) must be at least 1 and below 6"),
    "burn-in": (dict(burn_in=1), r"burn_in \(1\) must be at most window_length - stride \(0\)"),
    "shuffle": (dict(shuffle="all"), r"shuffle \('all'\) must be one of none, offset, rotate"),
    "keep and stride": (dict(keep="states", stride=2), "--keep=states keeps no state"),
    "no documents": (dict(documents="no/such", corpus=""), "There is no file 'no/such'"),
    "not prepared": (dict(prepared="no/such", corpus=""), "'no/such' holds no prepared corpus"),
    "readout": (dict(readout="half"), r"readout \('half'\) must be one of full, chunked"),
    "readout chunk": (
        dict(readout_chunk=0, readout="chunked"),
        r"readout_chunk \(0\) must be at",
    ),
    "readout of characters": (
        dict(readout="adaptive"),
        "--readout=adaptive needs ids sorted by frequency, as words have them",
    ),
    "readout tied": (
        dict(readout="sampled", tokens="words", tied=True, embedding=4),
        "--readout=sampled has weights of its own and cannot be --tied",
    ),
    "samples": (
        dict(readout="sampled", tokens="words"),
        r"samples \(1000\) must be at least 1 and at most vocabulary_size \(8\)",
    ),
    "cutoffs": (
        dict(readout="adaptive", tokens="words", cutoffs="2;5"),
        r"cutoffs \('2;5'\) must be ids, as 0,4",
    ),
    "cutoffs of few words": (
        dict(readout="adaptive", tokens="words"),
        r"cutoffs \(\[0, 4\]\) must be increasing, above 0",
    ),
    "temperature": (dict(temperature=0.0), r"temperature \(0.0\) must be above 0"),
    "profile": (
        dict(options=dict(profile_windows="9")),
        r"--profile_windows \('9'\) must be first:last",
    ),
    "save every": (dict(options=dict(save_every="m")), r"--save_every \('m'\) must be above 0"),
    "save never": (dict(options=dict(save_every="0")), r"--save_every \('0'\) must be above 0"),
    "test fraction": (dict(test_fraction=2.0), r"test_fraction \(2.0\)"),
}


@pytest.mark.parametrize("case", BAD)
def test_mistakes_are_told_in_one_line_before_anything_is_written(tmp_path, corpus_file, case):
    settings, message = BAD[case]
    with pytest.raises(UsageError, match=message) as error:
        trained(tmp_path / "run", **({"corpus": corpus_file} | settings))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "is empty"), (b"caf\xe9 " * 99, "is not UTF-8: byte 0xe9")]
)
def test_text_that_cannot_be_read(tmp_path, content, message):
    (tmp_path / "bad.txt").write_bytes(content)
    with pytest.raises(UsageError, match=message):
        trained(tmp_path / "run", corpus=str(tmp_path / "bad.txt"))


def test_word_outside_the_vocabulary(tmp_path, corpus_file):
    (tmp_path / "other.txt").write_text("the dog\n" * 20)
    with pytest.raises(UsageError, match=r"The word 'dog' on line 1 is not among"):
        trained(
            tmp_path / "run", config="ptb_small", train_text=corpus_file,
            valid_text=corpus_file, test_text=str(tmp_path / "other.txt"),
        )  # fmt: skip
