"""A stand-in for the kernels that compiles in 0.1 s, a cache of its own and a compiler that counts.

The tests here are about getting a library; what the kernels compute is tested elsewhere.
"""

import logging
import os
import pathlib
import shutil
import stat
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from tbptt.native import build, library

STAND_IN = """
extern "C" {
int raise(int);
int tbptt_unroll_forward, tbptt_unroll_backward, tbptt_product, tbptt_sum_of_squares;
const char* tbptt_check_interface(const void*) { return CHECK_INTERFACE; }
const char* tbptt_register(const void*, const char* name, const char* platform, void*) {
  return REGISTER;
}
const char* tbptt_self_check() { SELF_CHECK; return nullptr; }
const char* tbptt_path() {
#if defined(__AVX512BF16__)
  return "avx512_bf16";
#elif defined(__AVX512F__)
  return "avx512";
#elif defined(__AVX2__)
  return "avx2";
#else
  return "portable";
#endif
}
}
"""


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path, caplog):
    """Gives each test an empty cache, no settings, nothing loaded yet, and the log's lines."""
    for name in ("CXX", "TBPTT_NATIVE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TBPTT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(library, "_result", None)
    caplog.set_level(logging.INFO, "absl")


@pytest.fixture
def stand_in(monkeypatch, tmp_path) -> Callable[..., pathlib.Path]:
    """Returns a function that makes a stand-in the source; what it says are C++ expressions."""

    def make(*, self_check: str = "", interface: str = "nullptr", register: str = "nullptr"):
        text = STAND_IN.replace("SELF_CHECK", self_check).replace("REGISTER", register)
        source = tmp_path / "kernels.cc"
        source.write_text(text.replace("CHECK_INTERFACE", interface))
        monkeypatch.setattr(build, "SOURCE", source)
        return source

    make()
    return make


@pytest.fixture
def compiled(monkeypatch, tmp_path) -> Callable[[], list[str]]:
    """Returns a function that lists the flags of all compilations since the test began."""
    log, script = tmp_path / "compiled.txt", tmp_path / "counting"
    compiler = next(name for name in ("c++", "g++", "clang++") if shutil.which(name))
    script.write_text(
        f'#!/bin/sh\ncase "$*" in *-shared*) echo "$*" >> {log};; esac\nexec {compiler} "$@"\n'
    )
    script.chmod(stat.S_IRWXU)
    monkeypatch.setenv("CXX", str(script))
    return lambda: log.read_text().splitlines() if log.exists() else []


def in_forks(count: int, function: Callable[[], Any]) -> list[str]:
    """Runs `function` in so many forks of this process at once; returns their results' texts."""
    pipes = []
    for _ in range(count):
        reader, writer = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # there are threads: Python 3.12
            child = os.fork()
        if child == 0:
            try:
                os.write(writer, str(function()).encode())
            finally:
                os._exit(0)
        os.close(writer)
        pipes.append((child, reader))
    results = []
    for child, reader in pipes:
        with open(reader) as file:
            results.append(file.read())
        os.waitpid(child, 0)
    return results


def on_x86() -> bool:
    """Returns whether the lower paths mean anything to this machine's compiler."""
    return "x86_64" in os.uname().machine and sys.platform in ("linux", "darwin")
