"""A model writes: text in pieces, several samples, beams, stop tokens, other kinds of tokens."""

import functools
import io
import os
import re
import signal
import sys

import numpy as np
import pytest
from absl.testing import flagsaver

from experiments import midi, music
from tbptt.serving.beam import beam_search
from tbptt.serving.load import load
from tbptt.serving.sampling import Sampler, Sampling
from tbptt.serving.streamer import Streamer
from tbptt.streams.corpus import EOS, UNK, Vocabulary
from tests.runs import language_model, make_run, music_run
from tools import sample

LETTERS = Vocabulary("characters", ("\n", *"abcdé"))
WORDS = Vocabulary("words", ("the", "cat", "sat", EOS))
BYTES = Vocabulary.of("", "bytes")


@pytest.fixture(scope="module")
def models():
    return {vocabulary: language_model(vocabulary) for vocabulary in (LETTERS, WORDS, BYTES)}


@pytest.fixture(autouse=True)
def one_sampler_a_model(monkeypatch):
    """Tracing takes most of the time of these tests."""
    monkeypatch.setattr(sample, "Sampler", SAMPLERS)


SAMPLERS = functools.cache(Sampler)
OPTIONS = dict(most=sample.PIECE, rows=1, jit_compile=False)


class Pieces(io.StringIO):
    """Keeps what was shown at every flush."""

    def __init__(self):
        super().__init__()
        self.shown = []

    def flush(self):
        self.shown.append(self.getvalue())


def written(models, vocabulary, prompt, length, **options):
    out = Pieces()
    options = dict(sampling=Sampling()) | options
    sample.write_samples(models[vocabulary], vocabulary, prompt, length, out, **options)
    return out


@pytest.mark.parametrize("vocabulary", [LETTERS, WORDS, BYTES], ids=lambda v: v.kind)
def test_text_is_shown_while_it_is_drawn(models, vocabulary):
    prompt = {"words": "the cat", "characters": "abé", "bytes": "abé"}[vocabulary.kind]
    out = written(models, vocabulary, prompt, 30, seed=5)
    ids = vocabulary.encode(prompt)
    drawn = SAMPLERS(models[vocabulary], **OPTIONS).sample(ids, 30, [[0, 5]])
    text = vocabulary.decode(np.concatenate([ids, drawn[:, 0]]))
    found = out.getvalue().removesuffix("\n")
    if vocabulary is WORDS:
        assert found.split() == text.split()
        assert "  " not in found
    else:
        assert found == text
    assert [len(text) for text in out.shown] == sorted({len(text) for text in out.shown})
    assert len(out.shown) == 4  # pieces of 8 tokens
    assert all(found.startswith(text) for text in out.shown)


def test_samples_are_the_same_however_many_are_asked_for(models):
    three = written(models, LETTERS, "ab", 20, samples=3).getvalue()
    parts = [part for part in three.split("--- ") if part]
    bodies = [part.partition("---\n")[2] for part in parts]
    assert [part[:6] for part in parts] == ["1 of 3", "2 of 3", "3 of 3"]
    assert bodies[0] == written(models, LETTERS, "ab", 20).getvalue()
    assert len(set(bodies)) == 3


def test_a_text_ends_at_a_stop_token(models):
    free = written(models, LETTERS, "ab", 200).getvalue()[2:]
    stopped = written(models, LETTERS, "ab", 200, stop=sample.stop_tokens(LETTERS, r"\nd"))
    end = min(free.index(letter) for letter in "\nd")
    assert stopped.getvalue()[2:] == free[: end + 1] + "\n"
    assert sample.stop_tokens(WORDS, r"cat\n") == [1, 3]
    assert sample.stop_tokens(BYTES, ".") == [46]
    assert sample.stop_tokens(LETTERS, "") == []


def test_beams_are_written_with_their_log_probability(models):
    out = io.StringIO()
    sample.write_beam(models[LETTERS], LETTERS, "ab", 5, out, width=3)
    streamer = Streamer(models[LETTERS], batch_sizes=(1, 4), jit_compile=False)
    found = beam_search(streamer, LETTERS.encode("ab"), 5, width=3)
    assert out.getvalue() == "".join(
        f"--- {k} of 3: 5 tokens of log probability {one.log_probability:.2f} ---\n"
        f"ab{LETTERS.decode(np.array(one.tokens))}\n"
        for k, one in enumerate(found, start=1)
    )


def test_the_newest_finished_run_is_taken(tmp_path):
    with pytest.raises(ValueError, match="There is no finished run below"):
        sample.newest_run(tmp_path)
    for age, name in enumerate(("a", "b/seed-0", "c")):
        path = tmp_path / name / "result.json"
        path.parent.mkdir(parents=True)
        path.write_text("{}")
        os.utime(path, (1e9, 1e9 + (-1) ** age * age))
    (tmp_path / "unfinished").mkdir()
    assert sample.newest_run(tmp_path) == tmp_path / "c"


@pytest.fixture(scope="module")
def folder(models, tmp_path_factory):
    """A folder with three runs below `runs`."""
    folder = tmp_path_factory.mktemp("writes")
    some_words = Vocabulary("words", ("the", "cat", UNK, EOS))
    music_run(folder / "runs/music")
    make_run(folder / "runs/words", models[WORDS], {"vocabulary": some_words})
    make_run(folder / "runs/other", models[LETTERS], {}, experiment="other")
    make_run(folder / "runs/mine", models[LETTERS], {"vocabulary": LETTERS})
    return folder


def call(folder, monkeypatch, capsys, *arguments):
    """Calls the command in this process; returns its status, and what it showed."""
    monkeypatch.chdir(folder)
    status = 0
    with flagsaver.flagsaver():
        try:
            sample.main(sample.flags.FLAGS(["sample", "--length=12", *arguments]))
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 1
            if status != error.code:
                print(error.code)
    shown = capsys.readouterr()
    return status, shown.out, shown.err


MUSIC = "--logdir=runs/music"
CASES = {
    "prompt": (["--logdir=runs/mine", "--prompt=aé"], r"\Aaé"),
    "newest": ([], r"\A"),
    "samples": (["--samples=2", "--top_k=3", "--min_p=0.1"], "--- 2 of 2 ---"),
    "beam": (["--beam=3", "--length=4"], "--- 3 of 3: 4 tokens of log probability -"),
    "stop": (["--prompt=ab", r"--stop=\nabcdé"], r"\Aab[\nabcdé]\n\Z"),
    "words": (["--logdir=runs/words", "--prompt=the dog"], r"\Athe <unk>"),
    "music": ([MUSIC, "--midi=a.mid", "--length=9"], r"a.mid: 32 frames .* and 9 that go on\."),
    "other piece": ([MUSIC, "--midi=b.mid", "--prompt=3"], r"b.mid: 32 frames"),
    "of a file": ([MUSIC, "--midi=c.mid", "--prompt=b.mid"], "c.mid: 44 frames .* and 12"),
}
BAD = {
    "unknown": (["--prompt=aQ🙂"], "The text has 'Q', '🙂', which the model does not know"),
    "no run": (["--logdir=nowhere"], "There is no folder 'nowhere'"),
    "temperature": (["--temperature=0"], r"temperature \(0.0\) must be above 0"),
    "both": (["--beam=2", "--top_k=3"], "With --beam the flag --top_k has no effect"),
    "word": (["runs/mine"], "'runs/mine' is no flag. Give the beginning of the text as --prompt"),
    "stop": (["--stop=Q"], "The text has 'Q', which"),
    "music": ([MUSIC], "The run in 'runs/music' is of music. Give the file to write as --midi"),
    "other": (["--logdir=runs/other"], "has no vocabulary, so its model does not write text"),
    "no music": (["--midi=a.mid"], "is not of experiments.music, so --midi has no effect"),
    "beam of music": ([MUSIC, "--midi=a.mid", "--beam=2"], "With --midi the flag --beam"),
    "no piece": ([MUSIC, "--midi=a.mid", "--prompt=20"], "the test part has 20, 0 to 19"),
    "no file": ([MUSIC, "--midi=a.mid", "--prompt=no.mid"], "no.mid"),
    "no place": ([MUSIC, "--midi=nowhere/a.mid"], "nowhere/a.mid"),
}


@pytest.mark.parametrize("case", CASES)
def test_commands(folder, monkeypatch, capsys, case):
    arguments, text = CASES[case]
    status, shown, _ = call(folder, monkeypatch, capsys, *arguments)
    assert status == 0, shown
    assert re.search(text, shown), shown


@pytest.mark.parametrize("case", BAD)
def test_commands_that_cannot_be_are_answered_in_one_line(folder, monkeypatch, capsys, case):
    arguments, text = BAD[case]
    status, shown, _ = call(folder, monkeypatch, capsys, *arguments)
    assert status == 1
    assert re.search(rf"\Aerror: .*{text}", shown), shown
    assert shown.count("\n") == 1


def test_what_was_not_asked_for_is_told_beside_the_text(folder, monkeypatch, capsys):
    _, _, errors = call(folder, monkeypatch, capsys)
    assert "The run in runs/mine:" in errors
    _, _, errors = call(folder, monkeypatch, capsys, "--logdir=runs/words", "--prompt=a dog")
    assert "The model does not know 'a', 'dog': read as '<unk>'." in errors


def test_music_is_the_piece_and_what_the_model_draws(folder, monkeypatch, capsys):
    options = (MUSIC, "--midi=d.mid", "--prompt=1", "--length=6", "--seed=4", "--temperature=0.3")
    call(folder, monkeypatch, capsys, *options)
    frames = midi.read_midi(folder / "d.mid", 88)
    given = music.load("", 88)["test"]
    piece = given.values[given.begins[1] :][:32] > 0
    model = load(folder / "runs/music").model
    drawn = midi.continue_piece(model, piece, 6, seed=4, temperature=0.3)
    assert np.array_equal(frames, np.concatenate([piece, drawn]))


class Terminal(io.StringIO):
    """Does something at every flush."""

    def __init__(self, do):
        super().__init__()
        self.flush = do


def test_an_interrupt_ends_it_cleanly(folder, monkeypatch, capsys):
    terminal = Terminal(lambda: signal.raise_signal(signal.SIGINT))
    monkeypatch.setattr(sys, "stdout", terminal)
    # A process that was started in the background ignores this signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        status, _, errors = call(folder, monkeypatch, capsys, "--prompt=ab", "--length=1000")
    finally:
        signal.signal(signal.SIGINT, before)
    assert status == 130
    assert re.fullmatch(r"ab(.|\n){8}\n", terminal.getvalue())
    assert "Traceback" not in errors


def test_a_pipe_that_is_closed_ends_it_in_silence(folder, monkeypatch, capsys):
    def closed():
        raise BrokenPipeError

    monkeypatch.setattr(sample, "show_no_more", lambda: None)
    monkeypatch.setattr(sys, "stdout", Terminal(closed))
    status, _, errors = call(folder, monkeypatch, capsys, "--logdir=runs/mine")
    assert (status, errors) == (0, "")
