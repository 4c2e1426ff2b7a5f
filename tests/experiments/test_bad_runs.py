"""Commands that cannot be carried out: what is promised to be said, and that nothing is lost."""

import errno
import json
import os
import shutil
import time
import zipfile

import numpy as np
import pytest

from experiments import language_model, memory, music
from tbptt.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from tbptt.distribution import Replicas
from tests.conftest import full_disk
from tests.experiments.conftest import command_line, contents, tool_line
from tools import inspect_checkpoint, launch

# Flags of a run that is as small as can be; the cases give one more.
TINY = ("--rows=2", "--hidden=4", "--max_windows=2", "--windows_per_call=2", "--nojit_compile")

SETTINGS = {
    "infinite": (music, ["--clip_norm=inf"], "clip_norm (inf) must be finite."),
    "not a number": (music, ["--learning_rate=nan"], "learning_rate (nan) must be finite."),
    "infinite temperature": (
        language_model,
        ["--temperature=inf"],
        "temperature (inf) must be finite.",
    ),
    "no bias": (language_model, ["--forget_bias=nan"], "forget_bias (nan) must be finite."),
    "infinite jitter": (language_model, ["--jitter=inf"], "jitter (inf) must be finite."),
    "huge integer": (
        language_model,
        ["--sample_length=99999999999999999999"],
        "sample_length (99999999999999999999) must fit into 64 bits.",
    ),
    "nothing to sample": (
        language_model,
        ["--sample_length=-5"],
        "sample_length (-5) must be at least 1.",
    ),
    "many layers": (music, ["--layers=1000000000"], "layers (1000000000) must be at most 1000."),
    "no cell": (music, ["--cell=rnn"], "cell ('rnn') must be one of lstm, gru."),
    "no dropout": (music, ["--dropout=1"], "dropout (1.0) must be below 1."),
    "many devices": (
        music,
        ["--logical_devices=100000"],
        "logical_devices (100000) must be at most 64.",
    ),
    "more devices than rows": (
        music,
        ["--logical_devices=3"],
        "--rows=2 must be a multiple of --logical_devices=3, because a device carries the state of "
        "its own rows. Use other --rows or fewer devices.",
    ),
    "more devices than rows, seeds": (
        music,
        ["--logical_devices=3", "--seeds=2", "--logdir=run"],
        "--rows=2 must be a multiple of --logical_devices=3, because a device carries the state of "
        "its own rows. Use other --rows or fewer devices.",
    ),
    "no strategy": (
        music,
        ["--strategy=two"],
        "strategy ('two') must be one of auto, one, mirrored, multi_worker, tpu.",
    ),
    "no TPU": (
        music,
        ["--strategy=tpu"],
        "strategy='tpu' needs a TPU that the environment names, and none of TPU_NAME, TPU_CONFIG, "
        "KUBE_GOOGLE_CLOUD_TPU_ENDPOINTS is set. Set TPU_NAME, or use another strategy.",
    ),
    "no memory for layers": (
        music,
        ["--hidden=10000000"],
        "400,003,520,000,000 parameters need 6,400,056 GB to be trained, and this machine has ",
    ),
    "no memory for a text's layers": (
        language_model,
        ["--hidden=10000000"],
        "400,00",
    ),
    "profile beyond the run": (
        music,
        ["--profile_windows=1:9"],
        "--profile_windows (1:9) must end by window 2, the last of the run.",
    ),
    "profile of nothing": (
        memory,
        ["--profile_windows=1:9"],
        "--profile_windows has no effect here. Leave it out.",
    ),
    "no seed": (music, ["--seeds=0"], "seeds (0) must be at least 1."),
    "seeds beyond the last": (
        music,
        ["--seed=2147483647", "--seeds=2"],
        "--seed=2147483647 and --seeds=2 go beyond the largest seed, 2147483647. Use a smaller "
        "--seed.",
    ),
    "minutes": (music, ["--max_minutes=-1"], "max_minutes (-1.0) must be at least 0."),
    "endless minutes": (music, ["--max_minutes=inf"], "max_minutes (inf) must be finite."),
    "no flag": (music, ["seed=3"], "'seed=3' is not a flag; write --name=value, or see --help."),
    "huge seed": (music, ["--seed=3000000000"], "seed (3000000000) must be at most 2147483647."),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_are_checked_before_anything_is_read_or_written(tmp_path, case):
    module, flags, message = SETTINGS[case]
    done = command_line(module, *TINY, *flags, cwd=tmp_path)
    assert (done.status, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1
    assert contents(tmp_path) == {}


def test_a_process_that_its_cluster_does_not_name_does_not_train(tmp_path, monkeypatch):
    task = {"type": "worker", "index": 5}
    config = {"cluster": {"worker": ["alpha:2222"]}, "task": task}
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    done = command_line(music, *TINY, cwd=tmp_path)
    assert done.status == 1
    assert "says that this process is worker 5, but names 1 of them, counted from 0." in done.stderr
    assert contents(tmp_path) == {}


def test_what_shapes_the_report_alone_may_change(tmp_path):
    """An unfinished run goes on to a longer and wilder sample, and is still the same run."""
    (tmp_path / "text").write_text("the cat sat on the mat\n" * 20)
    flags = [*TINY, "--corpus=text", "--max_windows=4", "--window_length=4", "--logdir=run"]
    flags += ["--valid_rows=1"]
    done = command_line(language_model, *flags, "--max_minutes=1e-9", cwd=tmp_path)
    assert done.status == 75, done.stderr
    more = ["--sample_length=7", "--temperature=2", "--histogram_every=1"]
    done = command_line(language_model, *flags, *more, cwd=tmp_path)
    assert done.status == 0, done.stderr
    text, _, line = done.stdout.strip().rpartition("\n\n")
    assert len(text.rpartition("|")[2].strip("\n")) <= 7
    assert json.loads(line)["windows"] == 4
    assert json.loads((tmp_path / "run" / "settings.json").read_text())["sample_length"] == 7


def partial(folder):
    return [name for name in contents(folder) if name.endswith(".partial")]


def test_a_disk_too_full_for_the_settings_is_told(tmp_path):
    with full_disk(100):
        done = command_line(music, *TINY, "--logdir=run", cwd=tmp_path)
    assert done.status == 1
    assert done.stderr == (
        "error: 'run/settings.json' cannot be written: File too large. Make room or choose another "
        "--logdir, and give the same command again.\n"
    )
    assert partial(tmp_path) == []


def test_a_disk_too_full_for_all_but_the_result_is_survived(tmp_path):
    """Checkpoints, best parameters and events cannot be written; there is room again at the end."""
    flags = [*TINY, "--hidden=40", "--max_windows=4", "--eval_every=2", "--logdir=run"]
    with full_disk(2000):
        done = command_line(music, *flags, "--save_every=1", cwd=tmp_path)
    assert done.status == 0, done.stderr
    assert json.loads(done.stdout)["windows"] == 4
    for told in (
        "A checkpoint could not be written to run/checkpoints",
        "The best parameters could not be written to run/best_parameters.npz: File too large.",
        "TensorBoard's events could not be written to run",
    ):
        assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert partial(tmp_path) == []
    assert (tmp_path / "run" / "result.json").exists()
    assert not (tmp_path / "run" / "best_parameters.npz").exists()


def test_best_parameters_that_could_not_be_written_are_tried_again(tmp_path, monkeypatch):
    failures = []
    replace = os.replace

    def full_once(source, target):
        if str(target).endswith("best_parameters.npz") and not failures:
            failures.append(target)
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full_once)
    monkeypatch.setattr(type(tmp_path), "replace", lambda path, target: full_once(path, target))
    done = command_line(music, *TINY, "--logdir=run", cwd=tmp_path)
    assert done.status == 0, done.stderr
    assert len(failures) == 1
    assert (tmp_path / "run" / "best_parameters.npz").exists()
    assert partial(tmp_path) == []


def test_a_run_without_a_finite_validation_is_no_success(tmp_path):
    """Its checkpoints are written and read all the same."""
    flags = [*TINY, "--learning_rate=3e38", "--clip_norm=0", "--max_windows=4", "--eval_every=1"]
    flags += ["--logdir=run", "--save_every=1"]
    for _ in range(2):
        done = command_line(music, *flags, cwd=tmp_path)
        assert done.status == 1
        assert done.stdout == ""
        assert "error: No validation of 4 windows was finite, so there are no best" in done.stderr
        assert "Traceback" not in done.stderr
    assert read_checkpoint(tmp_path / "run" / "checkpoints" / "step-000000000004").step == 4
    assert not (tmp_path / "run" / "result.json").exists()


def sink_of(kind):
    """Standard output as with `> /dev/full`, and as with `| head -c 0`."""
    if kind == "full":
        return open("/dev/full", "w")
    read, write = os.pipe()
    os.close(read)
    return open(write, "w")


@pytest.mark.parametrize(("kind", "seeds"), [("full", 1), ("closed", 2)])
def test_a_result_is_written_though_nothing_can_be_printed(tmp_path, kind, seeds):
    (tmp_path / "text").write_text("the cat sat on the mat\n" * 20)
    flags = [*TINY, "--corpus=text", "--window_length=4", "--valid_rows=1", "--sample_length=9"]
    with sink_of(kind) as sink:
        flags += ["--logdir=run", f"--seeds={seeds}"]
        done = command_line(language_model, *flags, cwd=tmp_path, stdout=sink)
    assert done.status == 1
    assert done.stderr.splitlines()[-1].startswith("error: Standard output cannot be written (")
    assert done.stderr.endswith("), but the run is finished: its result is in 'run'.\n")
    name = "result.json" if seeds == 1 else "seeds.json"
    assert json.loads((tmp_path / "run" / name).read_text())["windows"] == 2


def test_a_result_that_cannot_be_written_is_written_by_the_same_command(tmp_path, monkeypatch):
    flags, replace = [*TINY, "--logdir=run"], os.replace

    def full(source, target):
        if str(target).endswith("result.json"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        done = command_line(music, *flags, cwd=tmp_path)
    assert done.status == 1
    assert done.stderr.endswith(
        "error: 'run/result.json' cannot be written: No space left on device. Make room or choose "
        "another --logdir, and give the same command again.\n"
    )
    assert partial(tmp_path) == []
    again = command_line(music, *flags, cwd=tmp_path)
    assert again.status == 0, again.stderr
    assert json.loads(again.stdout.splitlines()[-1])["windows"] == 2


OUT_OF_TIME = [*TINY, "--max_windows=6", "--max_minutes=1e-9", "--logdir=run"]


def test_workers_leave_once_the_last_checkpoint_is_written(tmp_path, monkeypatch):
    """What all processes ask each other last comes after the write, however slow the disk is."""
    asked, ask, sync = [], Replicas.any, os.fsync
    checkpoint = tmp_path / "run" / "checkpoints" / "step-000000000002"
    monkeypatch.setattr(os, "fsync", lambda file: time.sleep(0.1) or sync(file))

    def any_of(self, *flags):
        asked.append((flags, checkpoint.exists()))
        return ask(self, *flags)

    monkeypatch.setattr(Replicas, "any", any_of)
    done = command_line(music, *OUT_OF_TIME, cwd=tmp_path)
    assert done.status == 75, done.stderr
    assert "The run is saved at window 2 of 6, because 1e-09 minutes are over." in done.stderr
    assert asked[-1] == ((False,), True)


def test_a_last_save_that_failed_is_not_reported_as_saved(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(zipfile.ZipFile, "open", full)
    done = command_line(music, *OUT_OF_TIME, cwd=tmp_path)
    assert done.status == 1
    assert "The run stopped at window 2 of 6, because 1e-09 minutes are over, and could not be" in (
        done.stderr
    )
    assert "The run is saved" not in done.stderr


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder in which there is a finished run, `run`."""
    folder = tmp_path_factory.mktemp("finished")
    done = command_line(music, *TINY, "--logdir=run", cwd=folder)
    assert done.status == 0, done.stderr
    return folder


def spoilt(path, content):
    if path.is_file():
        path.unlink()
    if content is None:
        path.mkdir()
    else:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)


NO_SETTINGS = (
    "settings.json in 'run' cannot be read, so whose run that is cannot be told. Choose another "
    "--logdir."
)
NO_RESULT = (
    "result.json in 'run' cannot be read, so whether the run is finished cannot be told. Remove "
    "that file to go on from the last checkpoint, or use --restart after it."
)
# In the folder of a finished run: a file, what it holds instead (None: a folder), more flags.
FILES = {
    "settings empty": ("run/settings.json", b"", [], NO_SETTINGS),
    "settings cut": ("run/settings.json", b'{"rows": 2,', [], NO_SETTINGS),
    "settings a list": ("run/settings.json", b"[]", [], NO_SETTINGS),
    "settings null": ("run/settings.json", b"null", [], NO_SETTINGS),
    "settings binary": ("run/settings.json", b"\xff\x00\x01", [], NO_SETTINGS),
    "settings a folder": ("run/settings.json", None, [], NO_SETTINGS),
    "settings of another experiment": (
        "run/settings.json",
        b'{"experiment": "speech", "rows": 3}',
        [],
        "'run' holds a run of 'speech', and this is 'music'. Choose another --logdir.",
    ),
    "settings of a stranger": (
        "run/settings.json",
        b'{"a": 1, "b": 2, "c": 3, "d": 4, "e": 5, "f": 6}',
        [],
        "'run' holds a run with other settings (a=1 there, None here; b=2 there, None here; ",
    ),
    "result empty": ("run/result.json", b"", [], NO_RESULT),
    "result cut": ("run/result.json", b'{"test": 1.', [], NO_RESULT),
    "result garbage": ("run/result.json", b"\xff\xfe", [], NO_RESULT),
    "result not finite": ("run/result.json", b'{"test": NaN}', [], NO_RESULT),
    "result a list": ("run/result.json", b"[1]", [], NO_RESULT),
    "other settings": (
        "note",
        b"",
        ["--seed=1"],
        "'run' holds a run with other settings (seed=0 there, 1 here). Choose another --logdir, or "
        "give the same settings.",
    ),
    "other data": (
        "run/result.json",
        b'{"test": 1.0, "data": "0123"}',
        [],
        "The run in 'run' is finished, but its data have changed since. Use --restart to run it "
        "again on the data as they are now, or choose another --logdir.",
    ),
    "seeds in a run": (
        "note",
        b"",
        ["--seeds=2"],
        "'run' holds a run of one seed. Choose another --logdir for several.",
    ),
    "a stranger's files": (
        "mine/thesis.tex",
        b"years of work",
        ["--logdir=mine"],
        "'mine' holds files (thesis.tex) and no run. Choose a new or an empty folder as --logdir.",
    ),
    "a stranger's files, seeds": (
        "mine/thesis.tex",
        b"years of work",
        ["--logdir=mine", "--seeds=2"],
        "'mine' holds files (thesis.tex) and no run. Choose a new or an empty folder as --logdir.",
    ),
    "a stranger's files, restart": (
        "mine/thesis.tex",
        b"years of work",
        ["--logdir=mine", "--restart"],
        "'mine' holds files (thesis.tex) and no run. Choose a new or an empty folder as --logdir.",
    ),
    "the folder of runs": (
        "note",
        b"",
        ["--logdir=."],
        "'.' holds files (note, run) and no run. Choose a new or an empty folder as --logdir.",
    ),
    "a file": ("note", b"", ["--logdir=note"], "--logdir ('note') is a file. Choose a folder."),
    "below a file": (
        "note",
        b"",
        ["--logdir=note/run"],
        "--logdir ('note/run') cannot be made: Not a directory. Choose another one.",
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_a_folder_that_cannot_be_claimed_is_left_as_it_is(tmp_path, finished, case):
    file, content, flags, message = FILES[case]
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    spoilt(tmp_path / file, content)
    before = contents(tmp_path)
    done = command_line(music, *TINY, "--logdir=run", *flags, cwd=tmp_path)
    assert (done.status, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].startswith(f"error: {message}")
    assert "Traceback" not in done.stderr
    assert contents(tmp_path) == before


IN_THE_WAY = {
    "checkpoints": (b"", "A checkpoint could not be written to run/checkpoints: "),
    "best_parameters.npz": (
        None,
        "The best parameters could not be written to run/best_parameters",
    ),
}


@pytest.mark.parametrize("name", IN_THE_WAY)
def test_a_run_is_finished_though_something_is_in_the_way(tmp_path, finished, name):
    content, message = IN_THE_WAY[name]
    flags = [*TINY, "--logdir=run"]
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    before = json.loads((tmp_path / "run" / "result.json").read_text())
    (tmp_path / "run" / "result.json").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    spoilt(tmp_path / "run" / name, content)
    done = command_line(music, *flags, cwd=tmp_path)
    assert done.status == 0, done.stderr
    assert message in done.stderr
    assert json.loads(done.stdout)["test"] == before["test"]
    assert partial(tmp_path) == []


def test_figures_that_cannot_be_read_are_told(tmp_path):
    flags = ["--cuts=2", "--steps=20", "--rows=2", "--hidden=4", "--nojit_compile", "--logdir=run"]
    assert command_line(memory, *flags, cwd=tmp_path).status == 0
    (tmp_path / "run" / "result.json").unlink()
    for content in (b"", b"[]", b'{"5": "good"}', b"\xff", b'{"5": NaN}'):
        (tmp_path / "run" / "figures.json").write_bytes(content)
        before = contents(tmp_path)
        done = command_line(memory, *flags, cwd=tmp_path)
        assert done.status == 1
        assert done.stderr == (
            "error: 'run/figures.json' does not hold figures of windows. Remove it to find them "
            "again.\n"
        )
        assert contents(tmp_path) == before


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:99]),
    "foreign": lambda path: path.write_text("[1, 2]"),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("file", ["manifest.json", "arrays.npz"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_run_of_which_no_checkpoint_can_be_read(tmp_path, finished, file, damage):
    """Each reason once, and the way out; --restart takes it."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    (tmp_path / "run" / "result.json").unlink()
    folders = list((tmp_path / "run" / "checkpoints").iterdir())
    for folder in folders:
        DAMAGE[damage](folder / file)
    flags = [*TINY, "--logdir=run"]
    done = command_line(music, *flags, cwd=tmp_path)
    assert done.status == 1
    assert "error: No checkpoint in 'run/checkpoints' can be used. " in done.stderr
    assert done.stderr.endswith("Use --restart to begin anew.\n")
    assert done.stderr.count(str(folders[0].name)) == 1
    done = tool_line(inspect_checkpoint, "run", cwd=tmp_path)
    assert done.status == 1
    assert f"{folders[0].name}: DAMAGED: " in done.stdout
    assert done.stderr == "error: none of these can be used.\n"
    if (damage, file) == ("empty", "arrays.npz"):
        done = command_line(music, *flags, "--restart", cwd=tmp_path)
        assert done.status == 0, done.stderr


def test_checkpoints_of_a_stranger_are_refused(tmp_path, finished):
    """Their checksums are right, and their content is another program's."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    (tmp_path / "run" / "result.json").unlink()
    for folder in (tmp_path / "run" / "checkpoints").iterdir():
        found = read_checkpoint(folder)
        shutil.rmtree(folder)
        write_checkpoint(folder, Checkpoint(found.step, found.arrays, {"cursor": "here"}))
    done = command_line(music, *TINY, "--logdir=run", cwd=tmp_path)
    assert done.status == 1
    assert "has 'here' for a cursor, which must be two numbers" in done.stderr.splitlines()[-1]
    done = tool_line(inspect_checkpoint, "run", cwd=tmp_path)
    assert done.status == 1
    assert "DAMAGED: The checkpoint of window 2 has 'here' for a cursor" in done.stdout


def test_an_array_of_text_is_no_checkpoint_s(tmp_path):
    arrays = {"names": np.array(["a", "bc"]), "none": np.zeros([0, 3])}
    write_checkpoint(tmp_path / "one", Checkpoint(3, arrays, {"cursor": [0, 1]}))
    done = tool_line(inspect_checkpoint, "one", cwd=tmp_path)
    assert done.status == 1
    assert "one: DAMAGED: " in done.stdout


TOOLS = {
    "hosts without ports": (
        launch,
        ["--hosts=alpha,beta", "--", "python"],
        "--hosts has 'alpha', but must be like alpha:2222,beta:2222.",
    ),
    "a host twice": (
        launch,
        ["--hosts=alpha:1,alpha:1", "--", "python"],
        "--hosts (alpha:1,alpha:1) has a worker twice. Give each its own port.",
    ),
    "an endless grace": (
        launch,
        ["--grace=nan", "--", "python"],
        "--grace (nan) must be finite.",
    ),
    "no such command": (
        launch,
        ["--", "/nope/cmd"],
        "'/nope/cmd' cannot be run: No such file or directory.",
    ),
    "nothing to inspect": (
        inspect_checkpoint,
        ["nowhere"],
        "There is no checkpoint in 'nowhere'. Give a run's folder.",
    ),
}


@pytest.mark.parametrize("case", TOOLS)
def test_tools_refuse_in_one_line(tmp_path, case):
    module, argv, message = TOOLS[case]
    done = tool_line(module, *argv, cwd=tmp_path)
    assert done == (1, "", f"error: {message}\n")
    assert contents(tmp_path) == {}


def test_threads_below_zero_are_refused(tmp_path):
    done = tool_line(launch, "--threads=-3", "--", "python", cwd=tmp_path)
    assert done.status == 1
    assert "flag --threads=-3" in done.stderr
