"""The examples in the docstrings, run as they stand: every public name is at hand."""

import doctest
import importlib
import pathlib

import numpy as np
import pytest
import tensorflow as tf

import tbptt
from tbptt import optimizers, state

ROOT = pathlib.Path(tbptt.__file__).parent
NAMES = {
    **{
        name: getattr(module, name) for module in (tbptt, optimizers, state) for name in dir(module)
    },
    "np": np,
    "tf": tf,
}
MODULES = [
    ".".join(["tbptt", *path.relative_to(ROOT).with_suffix("").parts])
    for path in sorted(ROOT.rglob("*.py"))
    if ">>>" in path.read_text()
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(name)
    result = doctest.testmod(module, extraglobs={**NAMES, **vars(module)})
    assert result.attempted > 0
    assert result.failed == 0
