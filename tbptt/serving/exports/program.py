"""`Program`: one step of any model as a function of flat, named tensors, which exports write."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tbptt import native
from tbptt.precision import full_precision
from tbptt.serving.exports.errors import ExportError
from tbptt.serving.exports.interface import RESET, Arrays, Interface, leaves_of, named_arrays
from tbptt.state import select
from tbptt.types import Model, Nest

Tensors = dict[str, tf.Tensor]  # by name


class Program:
    """One step of a model: `(inputs [B, ...], reset [B], state) -> (outputs [B, ...], state)`.

    A row whose `reset` is true takes the step from the initial state. The number of rows is fixed
    when a step is traced, because a model is traced for known sizes.

    Attributes:
      model: the model.
      interface: names, shapes and types.
      variables: all variables of the model.
      lowered: whether the model computes products in bfloat16 or float16.
    """

    def __init__(self, model: Model, example: Nest | None = None) -> None:
        """Traces a model to learn what it reads and returns.

        Args:
          model: a `Model`.
          example: inputs of one step or more of one row, `[N, ...]`, or a nest of such; only types
            and shapes matter. None: ids, if the model has a `vocabulary_size`; else features of as
            many columns as its lowest `w_x` has rows.

        Raises:
          ExportError: the inputs are not known, the model was made for several devices, or shapes
            are not known.
        """
        _check_devices(model)
        self.model = model
        self.variables: list[tf.Variable] = list(getattr(model, "variables", ()))
        self._state = model.initial_state(1)
        example = example_of(model) if example is None else example
        if not isinstance(example, dict | tuple):
            example = np.asarray(example)
        self._inputs = tf.nest.map_structure(self._step_of, example)
        with native.left_out():
            traced = tf.function(lambda x, s: model(x, s), autograph=False).get_concrete_function(
                self._inputs, tf.nest.map_structure(_spec, self._state)
            )
        self._outputs, state = traced.structured_outputs
        leaves = leaves_of(self._state, "state", 1)
        if leaves != leaves_of(state, "state", 1):
            raise ExportError(
                f"A step changes the state from {leaves} to {leaves_of(state, 'state', 1)}, but "
                "must return what it was given: the next step reads it."
            )
        self.lowered = _has_lowered(traced.graph)
        size = getattr(model, "vocabulary_size", None)
        self.interface = Interface(
            leaves_of(self._inputs, "inputs", 2),
            leaves_of(self._outputs, "outputs", 2),
            leaves,
            None if size is None else int(size),
        )

    def _step_of(self, example: Any) -> tf.TensorSpec:
        """Returns the type of one step of one row, `[1, 1, ...]`, of an example `[N, ...]`."""
        array = np.asarray(example)
        if array.ndim < 1 or array.dtype.kind not in "iuf":
            raise ExportError(
                f"The example is {array.dtype.name}{list(array.shape)}, but must be numbers "
                "[N, ...]: inputs of N steps of one row."
            )
        if array.dtype.kind in "iu":
            return tf.TensorSpec([1, 1, *array.shape[1:]], tf.int32)
        floats = [leaf.dtype for leaf in tf.nest.flatten(self._state) if leaf.dtype.is_floating]
        return tf.TensorSpec([1, 1, *array.shape[1:]], floats[0] if floats else tf.float32)

    def step(self, rows: int, *, in_full: bool = False) -> Callable[..., tuple[Tensors, Tensors]]:
        """Returns a step of so many rows, `(inputs, reset, state) -> (outputs, state)`, by name.

        Args:
          rows: B.
          in_full: whether products that the model computes in bfloat16 or float16 are computed in
            float32.
        """
        inputs_of, outputs_of, state_of = (
            [leaf.name for leaf in leaves]
            for leaves in (self.interface.inputs, self.interface.outputs, self.interface.state)
        )

        def run(inputs: Tensors, reset: tf.Tensor, state: Tensors) -> tuple[Tensors, Tensors]:
            x = [inputs[name][None] for name in inputs_of]
            before = tf.nest.pack_sequence_as(self._state, [state[name] for name in state_of])
            before = select(reset, self.model.initial_state(rows), before)
            with native.left_out(), full_precision(in_full):
                outputs, after = self.model(tf.nest.pack_sequence_as(self._inputs, x), before)
            flat = [leaf[0] for leaf in tf.nest.flatten(outputs)]
            return (
                dict(zip(outputs_of, flat, strict=True)),
                dict(zip(state_of, tf.nest.flatten(after), strict=True)),
            )

        return run

    def window_step(self, rows: int, *, in_full: bool = False) -> Callable[..., Tensors]:
        """Returns a function of the arguments of `specs`, and of `[1, rows, ...]` inputs.

        It is the step of the formats that have one step of a fixed number of rows; its results are
        outputs `[1, rows, ...]` and the state, by name.
        """
        one_step = self.step(rows, in_full=in_full)
        count = len(self.interface.inputs)
        names = [leaf.name for leaf in (*self.interface.inputs, *self.interface.state)]

        def run(*arguments: tf.Tensor) -> Tensors:
            given = [*arguments[:count], *arguments[count + 1 :]]  # reset stands between them
            named = dict(zip(names, given, strict=True))
            inputs = {leaf.name: named[leaf.name][0] for leaf in self.interface.inputs}
            state = {leaf.name: named[leaf.name] for leaf in self.interface.state}
            outputs, after = one_step(inputs, arguments[count][0], state)
            return {name: leaf[None] for name, leaf in outputs.items()} | after

        return run

    def specs(self, steps: int | None, rows: int | None) -> list[tf.TensorSpec]:
        """Returns the arguments of an exported step: inputs, `reset`, and the state; named."""
        inputs = [
            tf.TensorSpec([steps, rows, *leaf.shape], leaf.dtype, leaf.name)
            for leaf in self.interface.inputs
        ]
        state = [
            tf.TensorSpec([rows, *leaf.shape], leaf.dtype, leaf.name)
            for leaf in self.interface.state
        ]
        return [*inputs, tf.TensorSpec([steps, rows], tf.bool, RESET), *state]

    def initial_state(self, rows: int) -> Arrays:
        """Returns the state of so many rows that have read nothing, `[rows, ...]` by name."""
        return named_arrays(self.model.initial_state(rows), "state")

    def pack_inputs(self, arrays: Arrays) -> Nest:
        """Returns inputs by name as the nest that the model reads."""
        leaves = [tf.constant(arrays[leaf.name]) for leaf in self.interface.inputs]
        return tf.nest.pack_sequence_as(self._inputs, leaves)

    def pack_state(self, arrays: Arrays) -> Nest:
        """Returns a state by name as the nest that the model reads."""
        leaves = [tf.constant(arrays[leaf.name]) for leaf in self.interface.state]
        return tf.nest.pack_sequence_as(self._state, leaves)


def example_of(model: Model) -> Nest:
    """Returns inputs of one step that a model of this library takes, `[1]` or `[1, D]`.

    Raises:
      ExportError: it is not known what the model reads.
    """
    if getattr(model, "vocabulary_size", None) is not None:
        return np.zeros([1], np.int32)
    lowest: Any = getattr(model, "core", None) or getattr(model, "encoder", None)
    while getattr(lowest, "cores", None):
        lowest = lowest.cores[0]
    weights = getattr(lowest, "w_x", None)
    if weights is None:
        raise ExportError(
            f"It is not known what {type(model).__name__} reads, because its lowest layer has no "
            "w_x. Give example=, inputs of a step or more of one row, [N, ...]."
        )
    return np.zeros([1, int(weights.shape[0]) + getattr(model, "_bypass", 0)], np.float32)


def _spec(leaf: tf.Tensor) -> tf.TensorSpec:
    return tf.TensorSpec(leaf.shape, leaf.dtype)


def _has_lowered(graph: tf.Graph) -> bool:
    """Returns whether a graph, with its functions, computes in bfloat16 or float16."""
    definition = graph.as_graph_def(add_shapes=False)
    nodes = [*definition.node, *(n for f in definition.library.function for n in f.node_def)]
    lowered = {tf.bfloat16.as_datatype_enum, tf.float16.as_datatype_enum}
    return any(value.type in lowered for node in nodes for value in node.attr.values())


def _check_devices(model: Model) -> None:
    """Raises ExportError if a model or this moment belongs to several devices."""
    if tf.distribute.has_strategy():
        raise ExportError(
            "Exports are written outside of `strategy.scope()`, because programs of several "
            "devices cannot be saved. Leave the scope first."
        )
    for variable in getattr(model, "variables", ()):
        if isinstance(variable, tf.distribute.DistributedValues):
            raise ExportError(
                f"{variable.name} is a variable of several devices, which cannot be exported. Make "
                "the model outside of `strategy.scope()`, as tbptt.serving.load does, and load its "
                "parameters."
            )
