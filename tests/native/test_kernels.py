"""The kernels compute the equations, read and write only their arrays, and share without races.

`driver.cc` compares them with plain loops over random shapes. Here it is compiled for one path of
the processor after the other, for emulated AMX tiles and with the compiler's sanitizers.
"""

import os
import pathlib
import shutil
import subprocess
from typing import NamedTuple

import pytest

from tbptt.native import compiler, paths

HERE = pathlib.Path(__file__).parent
KERNELS = pathlib.Path(compiler.__file__).parent
# The kernels alone, whose small calls share their work too.
ALONE = ("-DTBPTT_SHARED_FROM=1e4", f"-I{KERNELS}", "-pthread")
PLAIN = tuple(flag for flag in compiler.FLAGS if flag not in ("-shared", "-fPIC"))
ENVIRONMENT = os.environ | {"ASAN_OPTIONS": "detect_leaks=0"}  # memory is kept for the next call


class Build(NamedTuple):
    """One way to compile the driver: the path, flags beside the path's, and how many cases."""

    path: str
    flags: tuple[str, ...]
    cases: int


WHOLE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
BUILDS = {
    "address": Build("best", ("-O1", *WHOLE), 10),
    "thread": Build("avx512", ("-O1", "-fsanitize=thread"), 4),
    "tiles": Build("best", ("-O1", "-fsanitize=address", "-DEMULATE_TILES"), 6),
    "avx2": Build("avx2", (), 30),
    "portable": Build("portable", (), 30),
}


def compile_and_run(source: pathlib.Path, target: pathlib.Path, flags, *arguments, prefix=()):
    """Compiles a program and runs it; returns the two that have ended, the second None if not."""
    command = [*compiler.find_compiler().command, *PLAIN, *flags, str(source), "-o", str(target)]
    built = subprocess.run(command, capture_output=True, text=True)
    if built.returncode:
        return built, None
    command = [*prefix, str(target), *arguments]
    return built, subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)


def launcher(flags: tuple[str, ...], folder: pathlib.Path) -> list[str]:
    """Returns what to put before a program with a sanitizer; skips where none can run."""
    sanitizer = [flag for flag in flags if flag.startswith("-fsanitize")]
    source = folder / "empty.cc"
    source.write_text("int main() {}\n")
    choices = [[]]
    if shutil.which("setarch"):  # older thread sanitizers fail where addresses are randomized far
        choices.append(["setarch", "-R"])
    for prefix in choices if sanitizer else [[]]:
        built, ran = compile_and_run(source, folder / "empty", sanitizer, prefix=prefix)
        if ran and ran.returncode == 0:
            return prefix
    reason = (built.stderr if ran is None else ran.stderr).strip().splitlines()
    pytest.skip(f"{' '.join(sanitizer)} does not work here: {reason[-1] if reason else 'no text'}")


def flags_of(build: Build) -> tuple[str, ...]:
    """Returns the flags of a build's path; skips where the processor lacks the path."""
    found = {path.name: path for path in paths.paths_to_try("best", compiler.find_compiler())}
    if "-DEMULATE_TILES" in build.flags and "__AVX512F__" not in found["best"].processor:
        pytest.skip("the code for AMX needs AVX-512 beside it, which this processor lacks")
    if build.path == "avx512":  # the best one lacks more than vdpbf16ps, or has no such path
        return found.get("avx512", next(iter(found.values()))).flags
    if build.path not in found:
        pytest.skip(f"this processor, or its compiler, lacks the path {build.path}")
    return found[build.path].flags


@pytest.mark.parametrize("name", BUILDS)
def test_kernels_compute_the_equations_on_any_thread_and_touch_only_their_arrays(name, tmp_path):
    build = BUILDS[name]
    flags = (*flags_of(build), *build.flags, *ALONE)
    prefix = launcher(build.flags, tmp_path)
    built, ran = compile_and_run(
        HERE / "driver.cc", tmp_path / "driver", flags, "1", str(build.cases), prefix=prefix
    )
    assert built.returncode == 0, built.stderr
    assert ran is not None
    assert (ran.returncode, ran.stdout[-9:]) == (0, "is right\n"), ran.stdout + ran.stderr
    expected = {"tiles": "amx", "avx2": "avx2", "portable": "portable"}
    assert ran.stdout.startswith(expected.get(name, ""))
