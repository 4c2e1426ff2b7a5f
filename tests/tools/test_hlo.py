"""What leaves the compiler's door: plain StableHLO, no host in it."""

import re

import numpy as np
import pytest
import tensorflow as tf

from tools.bench import hlo, recorded
from tools.bench.contestants import Size, build_ours
from tools.bench.pjrt import Program

TINY = Size(4, 6, 5, 8, layers=2, vocabulary=11, windows_per_call=3)


@pytest.fixture(scope="module")
def exported():
    trainer, loop_state, chunk = build_ours(TINY)
    return trainer, loop_state, chunk, hlo.export(trainer, loop_state, chunk)


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
    trainer, loop_state, chunk, found = exported
    (signature,) = re.findall(r"func\.func (?:public )?@main\((.*?)\) ->", found.text, re.S)
    shapes = re.findall(r"%arg\d+: tensor<([^>]*)>", signature)
    assert len(shapes) == len(found.inputs)
    names = {"float32": "f32", "int32": "i32", "int64": "i64", "bool": "i1"}
    for shape, given in zip(shapes, found.inputs, strict=True):
        dtype = names[tf.as_dtype(given.dtype).name]
        assert shape == "x".join([*map(str, given.shape), dtype])
    for variable in trainer.variables:
        assert any(given is variable for given in found.inputs)
    assert np.isfinite(trainer(loop_state, chunk)[1].read().loss)  # exporting has spoiled nothing


def test_a_step_is_the_same_after_it_was_written(tmp_path):
    """And says which result goes where: a state and a variable become what they were."""
    step = recorded.record(TINY)
    recorded.write(step, tmp_path / "new" / "step")
    again = recorded.read(tmp_path / "new" / "step")
    assert again.text == step.text
    assert (again.size, again.carried) == (TINY, step.carried)
    for a, b in zip(again.arguments + again.results, step.arguments + step.results, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype
    for result, argument in step.carried.items():
        before, after = step.arguments[argument], step.results[result]
        assert (before.shape, before.dtype) == (after.shape, after.dtype)
    assert len(set(step.carried.values())) == len(step.carried)


def test_differences_are_seen():
    expected = [np.array([1.0, 100.0]), np.array(3)]
    assert recorded.difference([np.array([1.0, 99.0]), np.array(3)], expected) == 0.01
    assert recorded.difference([np.array([np.nan, 100.0]), np.array(3)], expected) == np.inf
    with pytest.raises(
        ValueError, match=r"A result is float64\(1,\), but TensorFlow's float64\(2,\)"
    ):
        recorded.difference([np.array([1.0]), np.array(3)], expected)


@pytest.mark.torch
def test_jax_runs_what_was_exported():
    """Twice: the second call goes on from the first, as TensorFlow's would."""
    pytest.importorskip("jax")
    step = recorded.record(TINY)
    program = Program(step.text, step.arguments, step.carried)
    assert recorded.difference(program(), step.results) < 1e-5
    trainer, loop_state, chunk = build_ours(TINY)
    for _ in range(2):
        loop_state, _ = trainer(loop_state, chunk)
    assert (
        recorded.difference(
            program()[:4], [part.numpy() for part in tf.nest.flatten(loop_state)][:4]
        )
        < 1e-5
    )
