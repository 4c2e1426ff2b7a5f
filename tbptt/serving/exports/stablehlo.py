"""Writes and runs a step as StableHLO, which every XLA compiler takes, beside its parameters.

    step.mlir             @main(inputs [1, B, ...], reset [1, B], state_..., parameters)
                              -> (outputs [1, B, ...], state_...)
    parameters.npz        the parameters by name
    initial_state.npz     the state of one row that has read nothing

`arguments` and `results` in `description.json` name the arguments and results of `@main` in their
order; `parameters/NAME` is an array in `parameters.npz`.
"""

import pathlib
import re
from typing import Any

import numpy as np
import tensorflow as tf

from tbptt.serving.exports.errors import ExportError
from tbptt.serving.exports.fixed import FixedRunner, read_arrays, write_initial_state
from tbptt.serving.exports.interface import RESET, Arrays, Interface
from tbptt.serving.exports.program import Program
from tbptt.variables import named_variables

MODULE, PARAMETERS = "step.mlir", "parameters.npz"
PREFIX = "parameters/"
CALL_VERSION = 9  # of the operation that runs a module inside TensorFlow
TYPES = {"float32": "f32", "float64": "f64", "float16": "f16", "bfloat16": "bf16", "bool": "i1"}
TYPES |= {"int32": "i32", "int64": "i64"}


def write(program: Program, folder: pathlib.Path, batch: int) -> dict[str, Any]:
    """Writes one step of `batch` rows into an empty folder.

    Returns:
      The names of arguments and results, for the description.

    Raises:
      ExportError: XLA cannot compile the step, or it reads what is not the model's.
    """
    specs = program.specs(1, batch)
    step = tf.function(program.window_step(batch), autograph=False, jit_compile=True)
    traced = step.get_concrete_function(*specs)
    parameters = _parameters(program, traced.captured_inputs)
    try:
        text = step.experimental_get_compiler_ir(*specs)(stage="stablehlo")
    except Exception as error:  # XLA's errors are of several types
        reason = str(error).strip().splitlines()[0]
        raise ExportError(f"XLA cannot compile this model: {reason}") from None
    names = [leaf.name for leaf in (*program.interface.outputs, *program.interface.state)]
    results = [names[k] for k in _order(names, traced)]
    text = clean(text)
    arguments = [spec.name for spec in specs] + [PREFIX + name for name in parameters]
    _check_arguments(text, [*specs, *parameters.values()])
    (folder / MODULE).write_text(text, "utf-8")
    np.savez(folder / PARAMETERS, allow_pickle=False, **parameters)
    write_initial_state(folder, program.initial_state(1))
    return {"arguments": arguments, "results": results}


def clean(text: str) -> str:
    """Returns a module without places in source files and without notes for TensorFlow's XLA.

    Example:
      >>> clean('#loc1 = loc("x")\\nmodule @a attributes {mhlo.a = 1} {\\n} loc(#loc1)')
      'module @step {\\n}'
    """
    text = re.sub(r"^#loc.*\n?", "", text, flags=re.M)
    text = re.sub(r' loc\((?:"[^"]*"|#loc\d*|unknown)\)', "", text)
    text = re.sub(r"^module @\S+ attributes \{.*?\} \{$", "module @step {", text, flags=re.M)
    text = re.sub(r" ?\{mhlo\.frontend_attributes = \{[^{}]*\}\}", "", text)
    # Copies are no StableHLO; a reshape to the same shape is.
    text = re.sub(
        r"mhlo\.copy (%[\w#]+) : (tensor<[^>]*>)", r"stablehlo.reshape \1 : (\2) -> \2", text
    )
    return text.rstrip() + ("\n" if text.endswith("\n") else "")


def _order(names: list[str], traced: Any) -> list[int]:
    """Returns the places in `names` of the results of a traced function, in its order."""
    structured = traced.structured_outputs  # flattened in the order of the sorted names
    return [names.index(name) for name in sorted(structured)]


def _parameters(program: Program, captured: list[tf.Tensor]) -> Arrays:
    """Returns the values that a step reads beside its arguments, by name, in their order."""
    variables = named_variables(program.model)
    names = {id(variable.handle): name for name, variable in variables.items()}
    values: Arrays = {}
    for tensor in captured:
        if id(tensor) in names:
            values[names[id(tensor)]] = variables[names[id(tensor)]].numpy()
        elif tensor.dtype == tf.resource:
            raise ExportError(
                f"A step of {type(program.model).__name__} reads a variable that is no attribute "
                "of the model. Make it an attribute of the model, a tf.Module."
            )
        else:
            values[f"constant_{len(values)}"] = tensor.numpy()
    return values


def _check_arguments(text: str, wanted: list[Any]) -> None:
    """Raises ExportError unless `@main` has arguments of the wanted shapes and types."""
    head = re.search(r"func\.func (?:public )?@main\((.*?)\) ->", text, re.S)
    found = re.findall(r"%arg\d+: tensor<([^>]*)>", head[1] if head else "")
    types = [
        "x".join([*map(str, x.shape), TYPES.get(tf.as_dtype(x.dtype).name, "?")]) for x in wanted
    ]
    if found != types:
        raise ExportError(
            f"The StableHLO has arguments {found} instead of {types}. Export a SavedModel instead."
        )


class Runner(FixedRunner):
    """Runs a module by TensorFlow, compiled for the CPU."""

    def __init__(
        self,
        folder: pathlib.Path,
        interface: Interface,
        batch: int | None,
        *,
        arguments: list[str],
        results: list[str],
    ) -> None:
        """Reads the module and its parameters.

        Raises:
          ExportError: names of arguments or results are not those of the interface.
        """
        super().__init__(self._run_step, folder, interface, batch)
        parameters = read_arrays(folder / PARAMETERS)
        given = [leaf.name for leaf in (*interface.inputs, *interface.state)]
        returned = {leaf.name: leaf for leaf in (*interface.outputs, *interface.state)}
        own = [name.removeprefix(PREFIX) for name in arguments if name.startswith(PREFIX)]
        plain = [name for name in arguments if not name.startswith(PREFIX)]
        if {*plain} != {*given, RESET} or {*own} != {*parameters} or {*results} != {*returned}:
            raise ExportError(
                f"The arguments or results of {str(folder / MODULE)!r} are not those of the "
                "description. Write the export again."
            )
        with tf.device("CPU:0"):
            self._parameters = {PREFIX + n: tf.constant(parameters[n]) for n in own}
        self._arguments, self._results = arguments, results
        rows = {leaf.name: [1, batch, *leaf.shape] for leaf in interface.outputs}
        rows |= {leaf.name: [batch, *leaf.shape] for leaf in interface.state}
        self._call = dict(
            version=CALL_VERSION,
            module=(folder / MODULE).read_bytes(),
            Sout=[rows[name] for name in results],
            Tout=[tf.as_dtype(returned[name].dtype) for name in results],
            platforms=["CPU"],
        )

    def _run_step(self, inputs: Arrays, reset: np.ndarray, state: Arrays) -> tuple[Arrays, Arrays]:
        # The operation is not among tf.raw_ops.
        from tensorflow.compiler.tf2xla.python import xla

        given = {**inputs, RESET: reset, **state}
        with tf.device("CPU:0"):
            arguments = [
                self._parameters[name] if name in self._parameters else tf.constant(given[name])
                for name in self._arguments
            ]
            values = xla.call_module(arguments, **self._call)
        results = {name: x.numpy() for name, x in zip(self._results, values, strict=True)}
        return (
            {leaf.name: results[leaf.name] for leaf in self._interface.outputs},
            {name: results[name] for name in state},
        )
