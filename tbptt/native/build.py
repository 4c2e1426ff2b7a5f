"""Gives the compiled kernels: from the user's cache, or compiled and checked in a child process."""

import hashlib
import json
import pathlib
import signal
import subprocess
import sys
import time
from typing import NamedTuple

import tensorflow as tf
from absl import logging

from tbptt.native import cache
from tbptt.native.compiler import (
    FLAGS,
    CompileError,
    Compiler,
    compile_library,
    find_compiler,
    run_command,
    shorten,
)
from tbptt.native.errors import Unavailable
from tbptt.native.paths import Path, paths_to_try

SOURCE = pathlib.Path(__file__).with_name("handlers.cc")  # it includes kernels.cc
SELF_CHECK_SECONDS = 60
NOT_LOADED, WRONG = 3, 4  # how CHECK ends if the system refuses the library; if it is wrong
CHECK = f"""
import ctypes, sys
try:
    check = ctypes.CDLL(sys.argv[1]).tbptt_self_check
except OSError as error:
    print(error)
    sys.exit({NOT_LOADED})
check.restype = ctypes.c_char_p
reason = check()
if reason:
    print(reason.decode())
    sys.exit({WRONG})
"""
# Signals that the library's own instructions raise, by name: Windows has not all of them.
CRASHES = ("SIGILL", "SIGSEGV", "SIGBUS", "SIGFPE", "SIGABRT")


class Built(NamedTuple):
    """A compiled library: its file, and the seconds that compiling took now, 0 from the cache."""

    file: pathlib.Path
    seconds: float


class PathFailure(Exception):
    """The kernels of one path cannot be compiled, or do not compute right on this machine.

    Attributes:
      lasting: whether trying again would end in the same way.
    """

    def __init__(self, reason: str, *, lasting: bool = False) -> None:
        super().__init__(reason)
        self.lasting = lasting


def build(requested: str) -> Built:
    """Returns the library of a path, from the cache if it was compiled before.

    For `best`, a path that fails gives way to the next lower one.

    Args:
      requested: one of `PATHS`, but not `off`.
    Raises:
      Unavailable: there is no compiler, this processor lacks the path, or no path works.
    """
    compiler = find_compiler()
    source = SOURCE.read_bytes() + b"".join(
        file.read_bytes() for file in sorted(SOURCE.parent.glob("*.[ch]*")) if file != SOURCE
    )
    reasons: list[str] = []
    for path in paths_to_try(requested, compiler):
        if reasons:
            logging.warning("Trying the path %s instead: %s.", path.name, reasons[-1])
        try:
            return _get_library(f"kernels-{_key(source, path, compiler)}", path, compiler)
        except PathFailure as error:
            reasons.append(f"the path {path.name} fails: {error}")
    raise Unavailable(reasons[0])


def _key(source: bytes, path: Path, compiler: Compiler) -> str:
    """Returns a hash of everything that a compiled library depends on."""
    parts = [
        hashlib.sha256(source).hexdigest(), FLAGS, path.flags, path.processor,
        tf.version.VERSION, tf.version.GIT_VERSION, compiler,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _get_library(name: str, path: Path, compiler: Compiler) -> Built:
    """Returns the library from the cache, or compiles it there, or else in a temporary folder."""
    try:
        folder = cache.cache_folder()
        kept = _find(folder, name, log=False)  # also in a folder that cannot be written
        if kept:
            return kept
        cache.prepare_folder(folder)
        with cache.locked(folder):
            kept = _find(folder, name, log=True)  # what another process has compiled by now
            if kept:
                return kept
            logging.warning("Compiling the native kernels, once for this machine (about 10 s) ...")
            return _compile(folder, name, path, compiler)
    except OSError as error:
        logging.warning(
            "Compiling the native kernels for this process alone (about 10 s), because they "
            "cannot be kept: %s. Set TBPTT_CACHE to a folder of yours.",
            error,
        )
    try:
        return _compile(cache.temporary_folder(), name, path, compiler)
    except OSError as error:
        raise Unavailable(f"no folder serves to compile them in: {error}") from None


def _find(folder: pathlib.Path, name: str, *, log: bool) -> Built | None:
    """Returns the library in `folder`; raises PathFailure if it is known to fail."""
    file = cache.find_library(folder, name, log=log)
    reason = None if file else cache.find_failure(folder, name)
    if reason:
        raise PathFailure(reason)
    return Built(file, 0.0) if file else None


def _compile(folder: pathlib.Path, name: str, path: Path, compiler: Compiler) -> Built:
    """Compiles and checks the library in `folder`."""
    start = time.monotonic()
    with cache.temporary_file(folder) as new:
        try:
            compile_library(compiler, path.flags, SOURCE, new)
            self_check(new)
        except CompileError as error:
            raise PathFailure(str(error)) from None
        except PathFailure as error:
            if error.lasting:
                cache.store_failure(folder, name, str(error))
            raise
        file = cache.store_library(new, folder, name)
    return Built(file, time.monotonic() - start)


def self_check(file: pathlib.Path) -> None:
    """Checks that the library `file` computes right on this machine.

    A child process without TensorFlow loads it, so that an instruction that the processor does
    not have ends the child and not the training.

    Raises:
      PathFailure: it does not, or the check takes longer than `SELF_CHECK_SECONDS`.
      OSError: the system does not load the library, as where the folder is mounted `noexec`.
      Unavailable: the system does not start the child.
    """
    try:
        ended = run_command([sys.executable, "-I", "-c", CHECK, str(file)], SELF_CHECK_SECONDS)
    except subprocess.TimeoutExpired:
        raise PathFailure(f"the self check took longer than {SELF_CHECK_SECONDS} s") from None
    except OSError as error:
        raise Unavailable(f"the self check cannot be started: {error}") from None
    if ended.status == NOT_LOADED:
        raise OSError(f"the library cannot be loaded: {shorten(ended)}")
    if ended.status < 0:
        number = -ended.status
        raise PathFailure(
            f"the self check ended by signal {number} ({signal.strsignal(number)})",
            lasting=any(number == getattr(signal, name) for name in CRASHES),
        )
    if ended.status:
        raise PathFailure(shorten(ended), lasting=ended.status == WRONG)
