"""`tools.bench.native` says what is available, and measures each path in a process of its own."""

import os
import re
import subprocess
import sys

from tbptt.native import library
from tests.commands import ROOT, run_module


def test_one_path_is_measured_beside_xla(tmp_path):
    arguments = ["--paths=portable", "--sizes=small", "--types=bfloat16", "--rounds=1"]
    ended = run_module("tools.bench.native", [*arguments, "--round_ms=0"], tmp_path)
    assert ended.status == 0, ended.output
    if not library.available():
        assert library.why_not() in ended.output
        return
    number = r"\d+\.\d+"
    for line in (
        r"compiler: \S+, .+",
        rf"\| portable \| portable \| ({number}|before) \| {number} \| /.+\.so \|",
        *(
            rf"\| small \| bfloat16 \| {what} \| portable"
            rf" \| {number} \| \d+ \| {number} \| {number} \|"
            for what in ("forward", "training")
        ),
        rf"\| small \| bfloat16 \| portable \| [+-]{number}% \| [+-]{number}% \|",
        rf"\| portable \| \d+ \| \d+ \| {number} \|",
    ):
        assert re.search(f"^{line}$", ended.output, re.MULTILINE), (line, ended.output)


def test_machine_without_a_compiler_is_told_why():
    ended = subprocess.run(
        [sys.executable, "-m", "tools.bench.native"],
        env=os.environ | {"CXX": "false"}, cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == 0
    assert ended.stdout.startswith(
        "The native kernels are not available: the compiler CXX=false does not work"
    )


def test_unknown_size_is_an_error_that_names_the_choices(tmp_path):
    ended = run_module("tools.bench.native", ["--sizes=tiny"], tmp_path)
    assert ended.status == 1
    assert "error: --sizes ('tiny') must be some of char, small, ptb_small, deep" in ended.output
