"""What leaves the compiler's door: plain StableHLO, no host in it."""

import re

import numpy as np
import pytest
import tensorflow as tf

from tools import hlo
from tools.contestants import Size, build_ours

TINY = Size(4, 6, 5, 8, layers=2, vocabulary=11, windows_per_call=3)


@pytest.fixture(scope="module")
def exported():
    trainer, carry, chunk = build_ours(TINY)
    return trainer, carry, chunk, hlo.export(trainer, carry, chunk)


def test_the_hot_loop_is_stablehlo_without_a_host_operation(exported):
    """What a TPU cannot do would be a call out of the program, or an operation of TensorFlow's."""
    *_, found = exported
    operations = set(re.findall(r"\b((?:stablehlo|chlo|mhlo|tf|shape)\.\w+) ?[(%]", found.text))
    assert "stablehlo.while" in operations
    assert "stablehlo.dot_general" in operations or "stablehlo.dot" in operations
    for operation in operations:
        assert operation.startswith("stablehlo."), operation
        assert operation.partition(".")[2] not in (
            "custom_call", "infeed", "outfeed", "send", "recv",
        )  # fmt: skip


def test_its_arguments_are_carry_chunk_and_every_variable(exported):
    trainer, carry, chunk, found = exported
    (signature,) = re.findall(r"func\.func (?:public )?@main\((.*?)\) ->", found.text, re.S)
    shapes = re.findall(r"%arg\d+: tensor<([^>]*)>", signature)
    assert len(shapes) == len(found.inputs)
    names = {"float32": "f32", "int32": "i32", "int64": "i64", "bool": "i1"}
    for shape, given in zip(shapes, found.inputs, strict=True):
        dtype = names[tf.as_dtype(given.dtype).name]
        assert shape == "x".join([*map(str, given.shape), dtype])
    for variable in trainer.variables:
        assert any(given is variable for given in found.inputs)
    assert np.isfinite(trainer(carry, chunk)[1].read().loss)  # exporting has spoiled nothing
