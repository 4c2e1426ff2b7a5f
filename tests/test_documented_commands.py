"""Every command in the README and in docs/ is run as it stands, made short by flags behind it."""

import dataclasses
import importlib.util
import json
import math
import pathlib
import re
import shlex
import subprocess
import sys
import urllib.request
from collections.abc import Callable

import numpy as np
import pytest

from tests import runs
from tests.commands import ROOT, Ended, documented, run_module
from tools.bench import contestants, synthetic_words

TEXT = "the cat sat on the mat\nthe end of the cat\n" * 60
TINY = ["--max_windows=2", "--windows_per_call=2", "--hidden=6", "--nojit_compile"]
TINY_TEXT = [*TINY, "--embedding=6", "--sample_length=5"]


@dataclasses.dataclass(frozen=True)
class Run:
    """How a documented command is tried.

    Attributes:
      shorter: flags that are put behind it.
      check: raises AssertionError unless the command did what it is for; gets what it left, and
        the folder it ran in.
      files: makes the files that it reads, in the folder it runs in.
      verdict: the status says whether the machine is quiet enough, so it may be 1.
    """

    shorter: list[str]
    check: Callable[[Ended, pathlib.Path], None]
    files: Callable[[pathlib.Path], object] = lambda folder: None
    verdict: bool = False


def result(**expected):
    """Checks the result of an experiment: its last line, which is a file too."""

    def check(ended: Ended, folder: pathlib.Path) -> None:
        found = json.loads(ended.output.strip().splitlines()[-1])
        name = "seeds.json" if "seeds" in expected else "result.json"
        assert found in [json.loads(path.read_text()) for path in folder.rglob(name)]
        assert math.isfinite(found["test"])
        assert {name: found[name] for name in expected} == expected

    return check


def says(*texts):
    """Checks that the output has lines with these regular expressions."""

    def check(ended: Ended, folder: pathlib.Path) -> None:
        for text in texts:
            assert re.search(text, ended.output), ended.output

    return check


def needs(package: str, extra: str, *texts):
    """Checks the output; where the package is missing, that the extra is named which brings it."""
    if importlib.util.find_spec(package):
        return says(*texts)

    def check(ended: Ended, folder: pathlib.Path) -> None:
        assert f"pip install -e '.[{extra}]'" in ended.output

    return check


def texts(*names, content=TEXT):
    def write(folder):
        for name in names:
            (folder / name).write_text(content)

    return write


def json_lines(folder):
    lines = [json.dumps({"text": TEXT[k : k + 60]}) + "\n" for k in range(40)]
    (folder / "inaugural.jsonl").write_text("".join(lines))


def prepared(folder):
    texts("names.txt")(folder)
    arguments = ["--out=corpus", "--kind=characters", "--lines", "names.txt"]
    assert run_module("tools.prepare", arguments, folder).status == 0


def words(folder):
    for number, name in enumerate(("train", "valid", "test")):
        (folder / "words").mkdir(exist_ok=True)
        text = synthetic_words.sentences(np.random.default_rng(number), 10_000)
        (folder / "words" / f"{name}.txt").write_text(text)


def chorales(folder):
    rng = np.random.default_rng(0)
    arrays = {}
    for part in ("train", "valid", "test"):
        arrays[f"{part}_len"] = np.array([20] * 8)
        arrays[part] = np.packbits(rng.random([160, 88]) < 0.05, axis=1)
    for name in ("JSB_Chorales.npz", "Nottingham.npz"):
        np.savez(folder / name, **arrays)


def vowels(folder):
    rng = np.random.default_rng(0)
    arrays = {}
    for part in ("train", "test"):
        arrays[f"{part}_len"] = np.array([15] * 36)
        arrays[part] = rng.normal(size=[15 * 36, 12]).astype(np.float32)
        arrays[f"{part}_y"] = np.arange(36) % 9
    np.savez(folder / "japanese_vowels.npz", **arrays)


def digits(folder):
    rng = np.random.default_rng(0)
    np.savez(
        folder / "fsdd_mfcc.npz", mfcc=rng.normal(size=[1600, 13]).astype(np.float32),
        lengths=np.full(80, 20), digit=np.arange(80) % 10, index=np.arange(80) // 8,
    )  # fmt: skip


def table(folder):
    hours = np.datetime64("2016-07-01T00") + np.arange(14_400)
    values = np.random.default_rng(0).normal(size=[14_400, 7])
    lines = ["date,HUFL,HULL,MUFL,MULL,LUFL,LULL,OT"]
    lines += [
        ",".join([str(hour).replace("T", " ") + ":00:00", *(f"{v:.3f}" for v in row)])
        for hour, row in zip(hours, values, strict=True)
    ]
    (folder / "ETTh1.csv").write_text("\n".join(lines))


def finished_run(folder):
    arguments = [*TINY_TEXT, "--logdir=runs/mine"]
    assert run_module("experiments.language_model", arguments, folder, TEXT).status == 0


def written_run(folder):
    runs.language_run(folder / "runs/mine", TEXT)


def run_to_export(folder):
    written_run(folder)
    texts("FILE")(folder)


def run_and_export(folder):
    run_to_export(folder)
    arguments = ["--logdir=runs/mine", "--to=exports", "--format=stablehlo"]
    assert run_module("tools.export", arguments, folder).status == 0


LM = "python -m experiments.language_model"
PTB = f"{LM} --config=ptb_small"
PER_CHARACTER = dict(metric="bits_per_character", windows=2)
RUNS = {
    LM: Run(TINY_TEXT, result(**PER_CHARACTER, tokens=2 * 32 * 64)),
    f"{LM} --corpus=PATH --hidden=512": Run(TINY_TEXT, result(**PER_CHARACTER), texts("PATH")),
    f"{LM} --cell=gru --layers=2": Run(TINY_TEXT, result(**PER_CHARACTER)),
    f"{LM} --window_length=128 --rows=16": Run(
        [*TINY_TEXT, "--rows=4"], result(**PER_CHARACTER, tokens=2 * 4 * 128)
    ),
    f"{LM} --nojit_compile": Run(TINY_TEXT, result(**PER_CHARACTER)),
    f"{LM} --backend=scan": Run(TINY_TEXT, result(**PER_CHARACTER)),
    f"{LM} --recurrent_dropout=0.2 --weight_dropout=0.3 --zoneout=0.1 --layer_norm": Run(
        TINY_TEXT, result(**PER_CHARACTER)
    ),
    f"{LM} --documents=PATH": Run(TINY_TEXT, result(**PER_CHARACTER), texts("PATH")),
    f"{LM} --window_length=64 --stride=32": Run(
        TINY_TEXT, result(**PER_CHARACTER, tokens=2 * 32 * 32)
    ),
    f"{LM} --dynamic_rate=1e-3": Run(TINY_TEXT, result(**PER_CHARACTER)),
    f"{LM} --seeds=3": Run(TINY_TEXT, result(**PER_CHARACTER, seeds=3)),
    f"{LM} --profile_windows=100:150": Run(
        [*TINY_TEXT, "--profile_windows=1:2"], result(**PER_CHARACTER)
    ),
    f"{PTB} --train_text=ptb.train.txt --valid_text=ptb.valid.txt --test_text=ptb.test.txt": Run(
        TINY_TEXT,
        result(metric="perplexity", windows=2, tokens=2 * 20 * 20),
        texts("ptb.train.txt", "ptb.valid.txt", "ptb.test.txt", content=TEXT * 4),
    ),
    f"{PTB} --train_text=/tmp/words/train.txt --valid_text=/tmp/words/valid.txt "
    "--test_text=/tmp/words/test.txt --max_windows=1000": Run(
        TINY_TEXT, result(metric="perplexity", windows=2), words
    ),
    "python -m tools.prepare --out=corpus --kind=characters --lines names.txt": Run(
        [], says('"tokens": 2400, "documents": 120'), texts("names.txt")
    ),
    f"{LM} --prepared=corpus": Run(TINY_TEXT, result(**PER_CHARACTER), prepared),
    f"{LM} --logical_devices=2": Run(TINY_TEXT, result(**PER_CHARACTER)),
    f"{LM} --strategy=mirrored": Run(TINY_TEXT, result(**PER_CHARACTER)),
    f"{LM} --documents=inaugural.jsonl --test_documents=9 --valid_documents=4 --max_epochs=12": Run(
        TINY_TEXT, result(**PER_CHARACTER), json_lines
    ),
    f"{LM} --corpus=tinyshakespeare.txt --max_epochs=10 --dynamic_rate=1e-3": Run(
        TINY_TEXT, result(**PER_CHARACTER), texts("tinyshakespeare.txt")
    ),
    "python -m experiments.music --data=JSB_Chorales.npz": Run(
        TINY, result(metric="nats_per_frame", windows=2), chorales
    ),
    "python -m experiments.music --data=Nottingham.npz --max_epochs=35": Run(
        TINY, result(metric="nats_per_frame", windows=2), chorales
    ),
    "python -m experiments.speech --data=japanese_vowels.npz --score=last --nopooling --layers=2 "
    "--dropout=0.6 --input_dropout=0.4 --max_epochs=150 --valid_fraction=0": Run(
        TINY, result(windows=2), vowels
    ),
    "python -m experiments.speech --data=fsdd_mfcc.npz --deltas --layers=2 --hidden=200 "
    "--dropout=0.6 --input_dropout=0.3 --recurrent_dropout=0.4 --rows=32 --learning_rate=4e-3 "
    "--max_epochs=60 --valid_fraction=0": Run(TINY, result(windows=2), digits),
    "python -m experiments.forecast --data=ETTh1.csv --train=8640 --valid=2880 --test=2880": Run(
        TINY, result(metric="mse", windows=2), table
    ),
    "python -m experiments.memory": Run(
        [*TINY, "--rows=2", "--steps=30"], says(r"\| 15/5 \| \d\.\d+ \|", '"15f": ')
    ),
    "python -m tools.launch --workers=2 --restart=3 -- " + LM: Run(
        [*TINY_TEXT, "--logdir=runs/two"], says('"windows": 2')
    ),
    "python -m tools.launch --hosts=alpha:2222,beta:2222 -- " + LM + " --logdir=/shared/run": Run(
        [], says("alpha:2222", "beta:2222", "--logdir=/shared/run")
    ),
    "python -m tools.launch --workers=2 -- COMMAND": Run([], says(r"0\b.*hello", r"1\b.*hello")),
    "python -m tools.launch --hosts=alpha:2222,beta:2222 -- COMMAND": Run([], says("echo hello")),
    "python -m tools.bench.compare_replicas --windows=200": Run(
        ["--windows=2", "--nojit_compile"],
        says("2 windows: loss", "largest relative difference"),
    ),
    "python -m tools.bench.scaling --sizes=char --measure=2": Run(
        ["--sizes=small", "--rounds=1", "--windows=1"], says(r"\| *2 *\|")
    ),
    "python -m tools.bench.scaling --sizes=char,ptb_large,huge": Run([], says("huge", "ptb_large")),
    "python -m tools.inspect_checkpoint runs/mine": Run(
        [], says("window 2", "model.core.cores.0.w_h"), finished_run
    ),
    'python -m tools.sample --prompt="The "': Run(
        ["--prompt=the ", "--length=20"], says("The run in runs/mine:", "(?m)^the "), written_run
    ),
    "python -m tools.sample --logdir=runs/mine --samples=3 --temperature=0.7 --top_p=0.95": Run(
        ["--length=5"], says("--- 1 of 3 ---", "--- 3 of 3 ---"), written_run
    ),
    'python -m tools.sample --logdir=runs/mine --prompt="import " --beam=8 --length=20': Run(
        ["--prompt=the ", "--length=3", "--beam=2"],
        says("2 of 2: 3 tokens of log probability -"),
        written_run,
    ),
    "python -m tools.sample --logdir=runs/music --midi=chorale.mid --prompt=3 --length=64": Run(
        [], says("chorale.mid: 32 frames that were given, and 64 that go on"),
        lambda folder: runs.music_run(folder / "runs/music"),
    ),
    "python -m tools.export --logdir=runs/mine --to=exported": Run(
        [], says("exported: any number of steps and rows, by TensorFlow"), run_to_export
    ),
    "python -m tools.export --logdir=runs/mine --to=exports --format=all": Run(
        [], says("exports/litert_int8: the same", "exports/stablehlo: one step"), run_to_export
    ),
    "python -m tools.export --logdir=runs/mine --to=exports --check --text=FILE": Run(
        [], says(r"\| stablehlo \| 1,000 \|", r"\| stablehlo \| 2,\d+ \|"), run_and_export
    ),
    "python -m tools.bench.large_corpus --folder=/tmp/large": Run(
        ["--prepared=corpus"], says(r'"resident_mb": \d+'), prepared  # one of its processes
    ),
    "python -m tools.bench.synthetic_words --folder=/tmp/words": Run([], says("")),
    "python -m tools.bench.flatness": Run(
        ["--call_windows=8", "--large=40000", "--small=4000", "--repeats=1", "--calls=8"],
        # The time of the last quarter is a difference, and noise may make it negative.
        says(r"\| 7 to 8 \| -?\d+\.\d+ \|", r"\| large / small \| \d+\.\d+ \| \d+\.\d+ \|"),
    ),
    "python -m tools.bench.soak --windows=100000": Run(
        ["--windows=500"], says(r"\n\| 10 \|", "500 windows: "), verdict=True
    ),
    "python -m tools.bench.streaming --rounds=7": Run(
        ["--units=8", "--sessions=3", "--steps=3", "--rounds=1"],
        says(r"\| streamer \| \d+ \| 1.00 \|", r"\| evaluation \| [\d,]+ \| 1.00 \|"),
    ),
    "python -m tools.bench.native": Run(
        ["--paths=portable", "--sizes=small", "--types=float32", "--rounds=1", "--round_ms=0"],
        says(r"\| small \| float32 \| training \| portable"),
    ),
    "python -m tools.bench.profile_window --size=char --backend=native": Run(
        ["--size=small", "--calls=1"],
        says(r"small, native: \d+\.\d+ ms a window", r"\| custom-call.* \| \d+\.\d+ \|"),
    ),
    "python -m tools.bench.profile_window --size=char --backend=fused": Run(
        ["--size=small", "--calls=1"],
        says(r"small, fused: \d+\.\d+ ms a window", r"\| .*MatMul.* \| \d+\.\d+ \|"),
    ),
    "python -m tools.bench.save_cost": Run(["--hidden=8", "--saves=1"], says("million parameters")),
    "python -m tools.bench.torture --kills=200": Run(
        ["--kills=1", "--run_windows=150"],
        # A run that ends before it is killed is followed by another one.
        says(r"1 kills, [01] during a save, \d+ runs: no difference, no hang"),
    ),
    "python -m tools.bench.benchmark --rounds=7 --contestants=ours-native-xla,ours-fused-xla,"
    "ours-native-xla-resets,ours-bfloat16-native,torch,torch-one-thread,torch-bfloat16,"
    "torch-bfloat16-parameters": Run(
        ["--rounds=1", "--sizes=small", "--contestants=ours-fused-plain"], says("ours-fused-plain")
    ),
    "python -m tools.bench.tpu_compile": Run([], needs("libtpu", "tpu-check", "v5e")),
    "python -m tools.bench.tpu_compile --config=char --topology=v5e:2x2": Run(
        [], needs("libtpu", "tpu-check", "v5e")
    ),
    "python -m tools.bench.tpu_compile --config=char,ptb_large,huge "
    "--topology=v5e:2x2,v5p:2x2x1,v6e:2x2": Run([], needs("libtpu", "tpu-check", "v6e")),
    "python -m tools.bench.run_hlo --config=char": Run(["--rounds=1"], needs("jax", "bench", "ms")),
    "python -m tools.bench.run_hlo --config=char --peer=torch": Run(
        ["--rounds=1"], needs("torch", "bench", "ms")
    ),
    "python -m tools.bench.run_hlo --config=char --export=FOLDER": Run(
        ["--config=small"], says("FOLDER: .* arguments")
    ),
}  # fmt: skip
# What cannot be run within a test of this suite, and what sees to it instead.
ELSEWHERE = {
    "pip install -e . && python -m experiments.language_model": "the second half is run here",
    "pip install -e '.[dev]' && ruff check . && ruff format --check . && mypy && pytest":
        "runs this test",
    "pip install -e '.[torch]' && pytest -m torch -n 0 -s": "tests/test_torch.py is its test",
    "pip install -e .": "an installation",
    "pip install -e '.[bench]'": "an installation",
    "pip install -e '.[litert]'": "an installation",
    "pip install -e '.[midi]'": "an installation",
    "pip install -e '.[safetensors]'": "an installation",
    "pip install -e '.[serve]' && python -m tools.serve": "the second half is run here, too",
    "pytest -n 0 tests/experiments/test_workers.py": "a test of this suite",
    "pytest -n 0 tests/layers": "a part of this suite",
    "python -m tools.bench.benchmark": "run with fewer rounds",
    "python -m tools.bench.benchmark --rounds=5 --contestants=ours-native-xla,torch,"
    "torch-one-thread,keras,jax": "see test_names_in_benchmark_commands",
    "python -m tools.bench.benchmark --sizes=char --rounds=2 --contestants=":
        "completed in the text",
    "python -m tools.bench.benchmark --sizes=long --contestants=ours-native-xla,ours-fused-xla,"
    "ours-states,ours-scan-xla,ours-states-scan --rounds=3": "see test_names_in_benchmark_commands",
    "python -m tools.bench.benchmark --sizes=words --contestants=ours-fused-xla,ours-chunked,"
    "ours-adaptive,ours-sampled --rounds=2": "see test_names_in_benchmark_commands",
    "python -m tools.bench.scaling --sizes=char --measure=2 --rounds=9": "run with fewer rounds",
    "pip install -e '.[serve]'": "an installation",
    "python -m tools.serve": "tests/tools/test_serve.py",
    "python -m tools.serve --logdir=runs/mine --port=8080 --sessions_folder=sessions":
        "tests/tools/test_serve.py",
    "python -m tools.bench.server": "its parts are tested in tests/serving/http/test_bench.py",
    "python -m tools.bench.server --requests=1000000": "tests/serving/http/test_bench.py",
    "tensorboard --logdir runs": "test_tensorboard_shows_a_run",
}  # fmt: skip


@pytest.mark.parametrize("command", RUNS)
def test_command(tmp_path, command):
    run = RUNS[command]
    run.files(tmp_path)
    text = command.replace("/tmp/", "").replace("COMMAND", "echo hello")
    python, dash_m, module, *arguments = [*shlex.split(text), *run.shorter]
    assert (python, dash_m) == ("python", "-m")
    ended = run_module(module, arguments, tmp_path, TEXT)
    missing = "pip install -e" in ended.output
    assert ended.status == (1 if missing else 0) or run.verdict, ended.output
    assert "Traceback" not in ended.output
    run.check(ended, tmp_path)


def test_every_documented_command_is_run():
    assert set(documented()) == set(RUNS) | set(ELSEWHERE)


def test_names_in_benchmark_commands():
    text = " ".join(command for command in documented() if "tools.bench.benchmark" in command)
    named = {
        flag: {name for found in re.findall(rf"--{flag}=(\S+)", text) for name in found.split(",")}
        for flag in ("sizes", "contestants")
    }
    assert named["sizes"] <= set(contestants.SIZES)
    assert named["contestants"] <= {*contestants.CONTESTANTS, *contestants.EXTRAS}
    assert len(named["contestants"]) > 5


def test_documented_extras_exist():
    text = (ROOT / "pyproject.toml").read_text()
    section = text.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    extras = set(re.findall(r"^([\w-]+) = \[", section, re.MULTILINE))
    named = {extra for command in documented() for extra in re.findall(r"\.\[([\w-]+)\]", command)}
    assert named
    assert named <= extras


def test_tensorboard_shows_a_run(tmp_path):
    finished_run(tmp_path)
    command = [pathlib.Path(sys.executable).parent / "tensorboard", "--logdir", "runs"]
    board = subprocess.Popen(
        [*command, "--port", "0"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    with board, board.stderr:
        url = next(filter(None, (re.search(r"http://\S+", line) for line in board.stderr)))[0]
        with urllib.request.urlopen(f"{url}data/plugin/scalars/tags", timeout=60) as answer:
            runs = json.load(answer)
        board.terminate()
        board.stderr.read()
    assert "loss/train" in runs["mine"]
