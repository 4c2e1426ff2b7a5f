"""The paths of the kernels: which of the processor's instructions the compiler may use.

The environment variable `TBPTT_NATIVE` names one. `best` is what the processor has; the others
lower it, for tests and comparisons; `off` does without native kernels.
"""

import os
import platform
import re
from typing import NamedTuple

from tbptt.native.compiler import Compiler, predefined_macros
from tbptt.native.errors import Unavailable

VARIABLE = "TBPTT_NATIVE"
# Each path with the macros that the compiler defines on a processor that has the instructions.
NEEDED = {
    "avx512_bf16": ("__AVX512F__", "__AVX512BF16__"),
    "avx512": ("__AVX512F__",),
    "avx2": ("__AVX2__", "__FMA__"),
    "portable": (),
}
PATHS = ("best", *NEEDED, "off")


class Path(NamedTuple):
    """One way to compile the kernels: a name of `PATHS`, the compiler's flags, and its macros."""

    name: str
    flags: tuple[str, ...]
    processor: str


def requested_path() -> str:
    """Returns the path that `TBPTT_NATIVE` names, `best` without it.

    Raises:
      Unavailable: it is none of `PATHS`.
    """
    name = os.environ.get(VARIABLE) or "best"
    if name not in PATHS:
        raise Unavailable(f"{VARIABLE} ({name!r}) must be one of {', '.join(PATHS)}")
    return name


def paths_to_try(requested: str, compiler: Compiler) -> list[Path]:
    """Returns the paths to try in turn: the one that was requested, or for `best` all, best first.

    Args:
      requested: one of `PATHS`, but not `off`.
      compiler: tells which instructions this processor has.
    Raises:
      Unavailable: the processor lacks the instructions of `requested`.
    """
    # GCC and Clang know the processor at hand by -mcpu on Arm, by -march elsewhere.
    native = "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"
    processor = predefined_macros(compiler, [native])
    if processor is None and predefined_macros(compiler, []) is None:
        raise Unavailable(f"the compiler {' '.join(compiler.command)} cannot read a C++ source")
    macros = set(re.findall(r"^#define (\w+)", processor or "", re.MULTILINE))
    flags: dict[str, tuple[str, ...]] = {}
    if processor is not None:
        flags["best"] = (native,)
    flags |= {
        name: _flags(name, native, macros) for name, needed in NEEDED.items() if macros >= {*needed}
    }
    if requested != "best":
        if requested not in flags:
            raise Unavailable(f"this processor lacks the instructions of {VARIABLE}={requested}")
        flags = {requested: flags[requested]}
    first = {value: name for name, value in reversed(flags.items())}  # equal flags: once
    return [
        Path(name, value, processor or "") for name, value in flags.items() if first[value] == name
    ]


def _flags(name: str, native: str, macros: set[str]) -> tuple[str, ...]:
    """Returns the flags of a path below `best`; takes away only what the compiler knows."""
    if name == "portable":
        return ()
    if name == "avx2":
        return ("-mavx2", "-mfma")
    tiles = sorted(re.findall(r"\b__AMX_(\w+?)__\b", " ".join(macros)))
    flags = [native, *(f"-mno-amx-{tile.lower()}" for tile in tiles)]
    if name == "avx512" and "__AVX512BF16__" in macros:
        flags.append("-mno-avx512bf16")
    return tuple(flags)
