"""Finds the machine's C++ compiler, asks it about the processor and compiles with it."""

import contextlib
import errno
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from tbptt.native.errors import Unavailable

NAMES = ("c++", "g++", "clang++")  # tried in this order, without $CXX
# Contraction into fused multiply-adds is off by default where a language standard is named.
FLAGS = ("-O3", "-std=c++17", "-ffp-contract=fast", "-fno-math-errno", "-shared", "-fPIC", "-w")
HEADER = "xla/ffi/api/ffi.h"
ANSWER_SECONDS, COMPILE_SECONDS = 30, 300  # a compiler that hangs must not hang the training
FULL_DISK = ("No space left on device", "Disk quota exceeded")


class Compiler(NamedTuple):
    """A C++ compiler that answers: its command line so far, and the first line of its version."""

    command: tuple[str, ...]
    version: str


class Ended(NamedTuple):
    """How a command ended: its status (negative: the signal) and all that it wrote."""

    status: int
    output: str


class CompileError(Exception):
    """The compiler does not accept the source with these flags."""


def run_command(command: Sequence[str], seconds: float) -> Ended:
    """Runs a command and everything that it starts for at most `seconds`.

    Raises:
      OSError: the command cannot be started.
      subprocess.TimeoutExpired: it took longer, and was ended.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=os.environ | {"LC_ALL": "C"},  # messages are searched below
        start_new_session=True,  # a compiler is several processes: they are ended together
        text=True, errors="replace",
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=seconds)
    except BaseException:  # Ctrl-C too, which a new session does not receive
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    return Ended(process.returncode, output)


def find_compiler() -> Compiler:
    """Returns the compiler that `$CXX` names, or else the first of `NAMES` that works.

    Raises:
      Unavailable: there is none, or it does not work.
    """
    chosen = os.environ.get("CXX", "").strip()
    if chosen:
        try:
            command = tuple(shlex.split(chosen))
        except ValueError as error:
            raise Unavailable(f"CXX={chosen} is no command line: {error}") from None
        return _ask_version(command, f"the compiler CXX={chosen}")
    reasons: list[str] = []
    for name in NAMES:
        if shutil.which(name):
            try:
                return _ask_version((name,), f"the compiler {name}")
            except Unavailable as error:
                reasons.append(error.reason)
    raise Unavailable(
        reasons[0]
        if reasons
        else f"no C++ compiler was found ({', '.join(NAMES)}): install one, or set CXX"
    )


def _ask_version(command: tuple[str, ...], name: str) -> Compiler:
    """Returns the compiler with its version; raises Unavailable if it has none."""
    if not shutil.which(command[0]):
        raise Unavailable(f"{name} was not found")
    try:
        ended = run_command([*command, "--version"], ANSWER_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{name} does not work: {error}") from None
    if ended.status or not ended.output.strip():
        raise Unavailable(f"{name} does not work: --version ended with status {ended.status}")
    return Compiler(command, ended.output.strip().splitlines()[0])


def predefined_macros(compiler: Compiler, flags: Sequence[str]) -> str | None:
    """Returns the macros that `flags` define, or None if the compiler does not know the flags."""
    command = [*compiler.command, *flags, "-dM", "-E", "-x", "c++", os.devnull]
    try:
        ended = run_command(command, ANSWER_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if ended.status else ended.output


def compile_library(
    compiler: Compiler, flags: Sequence[str], source: pathlib.Path, target: pathlib.Path
) -> None:
    """Compiles `source` to a shared library against the header of the installed TensorFlow.

    Args:
      compiler: from `find_compiler`.
      flags: what the processor's path adds to `FLAGS`.
      source: the file to compile.
      target: the library to write.
    Raises:
      CompileError: the compiler does not accept the source.
      OSError: the disk is full.
      Unavailable: TensorFlow has come without the header, or the compiler cannot be started or
        takes longer than `COMPILE_SECONDS`.
    """
    include = pathlib.Path(tf.sysconfig.get_include())
    if not (include / HEADER).exists():
        raise Unavailable(f"the installed TensorFlow has no header {HEADER} in {include}")
    command = [*compiler.command, *FLAGS, *flags, f"-I{include}", str(source), "-o", str(target)]
    try:
        ended = run_command(command, COMPILE_SECONDS)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"compiling took longer than {COMPILE_SECONDS} s") from None
    except OSError as error:
        raise Unavailable(f"{command[0]} cannot be started: {error}") from None
    if ended.status and any(text in ended.output for text in FULL_DISK):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
    if ended.status:
        raise CompileError(f"{compiler.command[0]} cannot compile them: {shorten(ended)}")


def shorten(ended: Ended) -> str:
    """Returns the end of what a command wrote, errors before other lines, as one short line."""
    lines = [line.strip() for line in ended.output.splitlines() if line.strip()]
    lines = [line for line in lines if "error" in line] or lines
    if not lines:
        return f"it ended with status {ended.status}"
    text = "; ".join(lines[-2:])
    return text if len(text) <= 300 else "..." + text[-300:]
