"""Writes and runs a SavedModel with the state as argument and result; TensorFlow alone loads it.

    initial_state(batch) -> {state_...}              batch: int32 scalar
    step(inputs, reset, state_...) -> {outputs, state_...}

`inputs` are `[T, B, ...]` and `reset` is `[T, B]`, with any T and B of 1 or more. The model is
traced for one step of a few numbers of rows; a step's program loops over the steps, and over groups
of rows, the last of which is filled up. So it is right for any sizes, and fastest where B is one of
`BATCH_SIZES`. XLA does not compile it: a server may have none.
"""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from tbptt.serving.exports.errors import ExportError
from tbptt.serving.exports.interface import RESET, Arrays, Interface
from tbptt.serving.exports.program import Program, Tensors

BATCH_SIZES = (1, 8, 64)  # numbers of rows that the model is traced for


def write(program: Program, folder: pathlib.Path, batch_sizes: Sequence[int] = BATCH_SIZES) -> None:
    """Writes the SavedModel of a program into a folder.

    Args:
      program: the program.
      folder: an empty folder.
      batch_sizes: numbers of rows that the model is traced for. More rows run in groups of the
        largest one.

    Raises:
      ExportError: the model reads variables that are not its own.
    """
    signatures = {
        "initial_state": _initial_state(program),
        "step": _step(program, sorted(set(batch_sizes))),
    }
    saved = tf.Module()
    saved.parameters = program.variables
    try:
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        tf.saved_model.save(saved, str(folder), signatures, options)
    except (AssertionError, ValueError) as error:  # TensorFlow's, for a variable it cannot find
        raise ExportError(
            f"TensorFlow cannot save {type(program.model).__name__}: {error} Keep all variables "
            "that a step reads as attributes of the model, a tf.Module."
        ) from None
    _remove_gradients(folder / "saved_model.pb")


def _remove_gradients(path: pathlib.Path) -> None:
    """Removes the names of custom gradients from a SavedModel, in which there are no gradients.

    TensorFlow would warn of each when it loads the model.
    """
    saved = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    for graph in saved.meta_graphs:
        for function in graph.graph_def.library.function:
            for node in function.node_def:
                node.attr.pop("_gradient_op_type", None)
    path.write_bytes(saved.SerializeToString(deterministic=True))


class Runner:
    """Runs the signatures of a SavedModel."""

    def __init__(self, folder: pathlib.Path, interface: Interface) -> None:
        """Loads the SavedModel in `folder`."""
        self._loaded = tf.saved_model.load(str(folder))  # keeps the variables alive
        self._step = self._loaded.signatures["step"]
        self._initial = self._loaded.signatures["initial_state"]
        self._outputs = [leaf.name for leaf in interface.outputs]

    def initial_state(self, rows: int) -> Arrays:
        """Returns the state of so many rows that have read nothing."""
        return _arrays(self._initial(batch=tf.constant(rows, tf.int32)))

    def run(self, inputs: Arrays, reset: np.ndarray, state: Arrays) -> tuple[Arrays, Arrays]:
        """Runs the steps of `inputs [T, B, ...]`; returns outputs and the state."""
        given = {**inputs, RESET: reset, **state}
        results = _arrays(self._step(**{name: tf.constant(x) for name, x in given.items()}))
        return (
            {name: results[name] for name in self._outputs},
            {name: results[name] for name in state},
        )


def _arrays(tensors: Tensors) -> Arrays:
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def _initial_state(program: Program) -> Any:
    """Returns the signature `initial_state(batch)`."""
    names = [leaf.name for leaf in program.interface.state]

    def initial_state(batch: tf.Tensor) -> Tensors:
        leaves = tf.nest.flatten(program.model.initial_state(1))
        return {
            name: tf.repeat(leaf, batch, axis=0) for name, leaf in zip(names, leaves, strict=True)
        }

    return tf.function(initial_state, autograph=False).get_concrete_function(
        tf.TensorSpec([], tf.int32, "batch")
    )


def _step(program: Program, sizes: list[int]) -> Any:
    """Returns the signature `step(inputs, reset, state...)`."""
    names = [spec.name for spec in program.specs(None, None)]

    def step(*arguments: tf.Tensor) -> Tensors:
        given = dict(zip(names, arguments, strict=True))
        rows = tf.shape(given[RESET])[1]

        def branch(size: int) -> Callable[[], Tensors]:
            run = _in_groups if size == sizes[-1] else _in_one_group
            return lambda: run(program, given, rows, size)

        fitting = tf.reduce_sum(tf.cast(rows > tf.constant(sizes), tf.int32))
        chosen = tf.minimum(fitting, len(sizes) - 1)
        return tf.switch_case(chosen, [branch(size) for size in sizes])

    return tf.function(step, autograph=False).get_concrete_function(*program.specs(None, None))


def _in_one_group(program: Program, given: Tensors, rows: tf.Tensor, size: int) -> Tensors:
    """Runs all steps of `size` rows or fewer; they are filled up."""
    of_state = {leaf.name for leaf in program.interface.state}
    filled = {n: _fill(x, 0 if n in of_state else 1, size - rows) for n, x in given.items()}
    results = _all_steps(program, filled, size)
    return {n: x[:rows] if n in of_state else x[:, :rows] for n, x in results.items()}


def _in_groups(program: Program, given: Tensors, rows: tf.Tensor, size: int) -> Tensors:
    """Runs all steps of any number of rows, in groups of `size`, the last of which is filled up."""
    interface = program.interface
    groups = (rows + size - 1) // size
    of_state = {leaf.name for leaf in interface.state}

    def split(leaf: tf.Tensor, axis: int) -> tf.Tensor:  # [..., B, ...] to [groups, ..., size, ...]
        filled = _fill(leaf, axis, groups * size - rows)
        shape = tf.shape(leaf)
        into = tf.concat([shape[:axis], [groups, size], shape[axis + 1 :]], axis=0)
        divided = tf.reshape(filled, into)
        return _swap(divided) if axis else divided

    def join(leaf: tf.Tensor, axis: int) -> tf.Tensor:  # and back
        swapped = _swap(leaf) if axis else leaf
        shape = tf.shape(swapped)
        into = tf.concat([shape[:axis], [groups * size], shape[axis + 2 :]], axis=0)
        joined = tf.reshape(swapped, into)
        return joined[:, :rows] if axis else joined[:rows]

    signature = {
        leaf.name: tf.TensorSpec([None, size, *leaf.shape], leaf.dtype)
        for leaf in interface.outputs
    } | {leaf.name: tf.TensorSpec([size, *leaf.shape], leaf.dtype) for leaf in interface.state}
    results = tf.map_fn(
        lambda group: _all_steps(program, group, size),
        {n: split(x, 0 if n in of_state else 1) for n, x in given.items()},
        fn_output_signature=signature,
    )
    return {n: join(x, 0 if n in of_state else 1) for n, x in results.items()}


def _fill(leaf: tf.Tensor, axis: int, more: tf.Tensor) -> tf.Tensor:
    """Adds so many rows of zeros at the end of an axis."""
    return tf.pad(leaf, [[0, more if k == axis else 0] for k in range(leaf.shape.rank)])


def _swap(leaf: tf.Tensor) -> tf.Tensor:
    """Swaps the first two axes."""
    return tf.transpose(leaf, [1, 0, *range(2, leaf.shape.rank)])


def _all_steps(program: Program, given: Tensors, size: int) -> Tensors:
    """Runs all steps of `size` rows."""
    one_step, interface = program.step(size), program.interface
    steps = tf.shape(given[RESET])[0]
    read = {name: given[name] for name in (*(leaf.name for leaf in interface.inputs), RESET)}
    state = {
        leaf.name: tf.ensure_shape(given[leaf.name], [size, *leaf.shape])
        for leaf in interface.state
    }
    written = {
        leaf.name: tf.TensorArray(leaf.dtype, steps, element_shape=[size, *leaf.shape])
        for leaf in interface.outputs
    }

    def body(t: tf.Tensor, state: Tensors, written: dict) -> tuple[tf.Tensor, Tensors, dict]:
        now = {name: tf.ensure_shape(x[t], [size, *x.shape[2:]]) for name, x in read.items()}
        outputs, state = one_step(now, now[RESET], state)
        written = {name: written[name].write(t, leaf) for name, leaf in outputs.items()}
        return t + 1, state, written

    _, state, written = tf.while_loop(
        lambda t, *_: t < steps, body, (tf.constant(0), state, written), parallel_iterations=1
    )
    return {name: array.stack() for name, array in written.items()} | state
