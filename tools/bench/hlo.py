"""Exports the compiled training loop as StableHLO, which any XLA compiler takes."""

import tbptt  # isort: skip  (before TensorFlow, which is then quiet while it is imported)

import re
from collections import Counter
from typing import Any, NamedTuple

import tensorflow as tf


class Exported(NamedTuple):
    """A training call as StableHLO text.

    Attributes:
      text: a module that takes loop_state, chunk and all variables, and returns loop_state, metrics
        and variables.
      inputs: the tensors and variables that it takes, in order.
    """

    text: str
    inputs: list[Any]


def export(trainer: tbptt.Trainer, loop_state: Any, chunk: Any) -> Exported:
    """Exports one call of a trainer that XLA compiles and that has not run yet, without running it.

    The program is for other machines too: it has no native kernels.
    """
    program = trainer._program
    with tbptt.native.left_out():
        text = program.experimental_get_compiler_ir(loop_state, chunk)(stage="stablehlo")
        captured = program.get_concrete_function(loop_state, chunk).captured_inputs
    # TensorFlow leaves copies in the text that are no StableHLO; a reshape to the same shape is.
    text = re.sub(
        r"mhlo\.copy (%[\w#]+) : (tensor<[^>]*>)", r"stablehlo.reshape \1 : (\2) -> \2", text
    )
    variables = {id(v.handle): v for v in trainer.variables}
    given = [part for part in tf.nest.flatten((loop_state, chunk)) if part is not None]
    return Exported(text, given + [variables.get(id(c), c) for c in captured])


def operations_in_loops(hlo: str) -> Counter[str]:
    """Counts operations by kind in the bodies of all loops; a fusion counts as one.

    Args:
      hlo: the text of a compiled module.

    Example:
      >>> hlo = '''
      ... %body (p: f32[2]) -> f32[2] {
      ...   %p = f32[2] parameter(0)
      ...   %a = f32[2] add(%p, %p)
      ...   ROOT %b = f32[2] multiply(%a, %p)
      ... }
      ... ENTRY %main (x: f32[2]) -> f32[2] {
      ...   ROOT %w = f32[2] while(%x), condition=%cond, body=%body
      ... }
      ... '''
      >>> sorted(operations_in_loops(hlo).items())
      [('add', 1), ('multiply', 1)]
    """
    bodies = set(re.findall(r"body=%?([\w.-]+)", hlo))
    counted: Counter[str] = Counter()
    for name, content in re.findall(r"^%?([\w.-]+)[^\n]*\{\n(.*?)^\}", hlo, re.M | re.S):
        if name in bodies:
            counted.update(re.findall(r"= \S+ ([a-z][\w-]*)\(", content))
    for silent in ("parameter", "tuple", "get-tuple-element", "bitcast", "constant"):
        del counted[silent]
    return counted
