"""Small runs of experiments in this process, and files like a stranger's."""

import contextlib
import io
import json
import os
import pathlib
import sys
from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf
from absl import flags, logging
from absl.testing import flagsaver

from tbptt.experiment import Options, usage_errors
from tbptt.experiment import flags as command_flags
from tbptt.experiment.launch import run_flags


@pytest.fixture(scope="module", autouse=True)
def _not_optimised():
    """Programs that run a few windows are not worth optimising; in tests/training they are."""
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    yield
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": False})


SMALL = dict(rows=2, hidden=4, max_windows=3, windows_per_call=2, jit_compile=False)


def run_small(module, logdir, *, config=None, options=None, **settings):
    """The result of a module's `main`, which is the one that it wrote."""
    config = config or next(iter(module.Settings.presets))
    with usage_errors():
        made = module.Settings(
            **{"config": config, **module.Settings.presets[config], **SMALL, **settings}
        )
        options = Options(str(logdir), **(options or {}))
    result = module.main(made, options)
    assert json.loads((logdir / "result.json").read_text()) == result
    return result


class Done(NamedTuple):
    """How a command ended, and what it said; the message of `sys.exit` is in `stderr`."""

    status: int
    stdout: str
    stderr: str


def ended(call, cwd, stdout=None):
    """Runs `call` in folder `cwd` as the body of a command; returns `Done`.

    Standard output goes to the file `stdout`, if that is given.

    An exception other than SystemExit, which a user would see as a traceback, is the test's own.
    """
    status, out, err = 0, io.StringIO(), io.StringIO()
    handler = logging.get_absl_handler().python_handler
    stream, verbosity, home = handler.stream, logging.get_verbosity(), os.getcwd()
    with contextlib.redirect_stdout(stdout or out), contextlib.redirect_stderr(err):
        try:
            handler.setStream(err)
            logging.set_verbosity(logging.INFO)  # as launch and absl do
            os.chdir(cwd)
            call()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
            if isinstance(end.code, str):
                print(end.code, file=err)
        finally:
            os.chdir(home)
            handler.setStream(stream)
            logging.set_verbosity(verbosity)
    return Done(status, out.getvalue(), err.getvalue())


def command_line(module, *argv, cwd, stdout=None):
    """Runs an experiment in this process as `python -m experiments.NAME ARGV` in folder `cwd`."""
    name = module.__name__.rpartition(".")[2]

    def call():
        values = flags.FlagValues()
        command_flags.define_flags(module.Settings, values)
        try:
            rest = values([name, *argv])[1:]
        except flags.Error as error:  # which absl tells and ends with status 1
            sys.exit(f"FATAL Flags parsing error: {error}")
        run_flags(module.main, module.Settings, rest, values)

    return ended(call, cwd, stdout)


def tool_line(module, *argv, cwd):
    """Runs a tool in this process as `python -m tools.NAME ARGV` in folder `cwd`."""

    def call():
        try:
            rest = flags.FLAGS([module.__name__, *argv])
        except flags.Error as error:
            sys.exit(f"FATAL Flags parsing error: {error}")
        module.main(rest)

    with flagsaver.flagsaver():
        return ended(call, cwd)


def contents(folder):
    """The bytes of every file below a folder, by its path; of a folder, None."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in pathlib.Path(folder).rglob("*")
    }


def pack(frames):
    return np.packbits(frames.astype(np.uint8), axis=1)


@pytest.fixture
def files(tmp_path):
    """A folder with what `write_files` writes."""
    write_files(tmp_path)
    return tmp_path


def write_files(tmp_path):
    """Writes small files in the layouts of music, speech and a table; their widths are unusual."""
    rng = np.random.default_rng(0)
    lengths = {"train": [9, 5, 12], "valid": [7, 4], "test": [6, 3]}
    music = {f"{part}_len": np.array(each) for part, each in lengths.items()}
    music |= {part: pack(rng.random([sum(each), 20]) < 0.2) for part, each in lengths.items()}
    np.savez(tmp_path / "music.npz", **music)
    speech = {}
    for part, count in (("train", 12), ("test", 6)):
        speech[f"{part}_len"] = rng.integers(2, 9, count)
        speech[part] = rng.normal(size=[speech[f"{part}_len"].sum(), 5])
        speech[f"{part}_y"] = np.arange(count) % 3 + 10  # labels need not begin at 0
    np.savez(tmp_path / "speech.npz", **speech)
    rows = [f"2020-01-{d:02},{d % 7},{'' if d == 9 else d % 5}" for d in range(1, 29) if d != 15]
    (tmp_path / "table.csv").write_text("\n".join(["day,wind,rain", *rows]))
