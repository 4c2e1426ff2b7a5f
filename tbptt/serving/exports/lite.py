"""Writes and runs LiteRT (TensorFlow Lite) models of one step, with the state going in and out.

    step.tflite           one signature: inputs [1, B, ...], reset [1, B], state_... -> outputs, ...
    initial_state.npz     the state of one row that has read nothing

A client that has no reader of `.npz` begins with zeros and `reset` true, which is the same. Weights
are float32, float16 (read as float32), or int8 with a scale a channel (the interpreter quantises
the activations of a product as it runs); small arrays stay float32.
"""

import pathlib
import threading
import warnings
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from tbptt.serving.exports.errors import ExportError
from tbptt.serving.exports.fixed import FixedRunner, write_initial_state
from tbptt.serving.exports.interface import RESET, Arrays, Interface
from tbptt.serving.exports.program import Program

MODEL = "step.tflite"
WEIGHTS = ("float32", "float16", "int8")


def write(program: Program, folder: pathlib.Path, batch: int, weights: str) -> None:
    """Writes one step of `batch` rows into an empty folder.

    Products that the model computes in bfloat16 or float16 are computed in float32, because the
    interpreter has no others.

    Raises:
      ExportError: LiteRT has no kernel for an operation of the model.
    """
    step = tf.function(program.window_step(batch, in_full=True), autograph=False)
    traced = step.get_concrete_function(*program.specs(1, batch))
    holder = tf.Module()
    holder.parameters = program.variables
    converter = tf.lite.TFLiteConverter.from_concrete_functions([traced], holder)
    if weights != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if weights == "float16":
        converter.target_spec.supported_types = [tf.float16]
    loud = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # that there are no gradients is as it should be
    try:
        converted = converter.convert()
    except Exception as error:  # the converter raises errors of several types
        reason = str(error).strip().splitlines()[0]
        raise ExportError(
            f"LiteRT cannot run this model: {reason} Export a SavedModel or StableHLO instead, or "
            "use operations in float32 that LiteRT has."
        ) from None
    finally:
        logging.set_verbosity(loud)
    (folder / MODEL).write_bytes(converted)
    write_initial_state(folder, program.initial_state(1))


class Runner(FixedRunner):
    """Runs a LiteRT model in the interpreter of `ai_edge_litert`, or of TensorFlow without it."""

    def __init__(self, folder: pathlib.Path, interface: Interface, batch: int | None) -> None:
        """Loads the model in `folder`."""
        super().__init__(self._run_step, folder, interface, batch)
        self._interpreter = open_interpreter(folder / MODEL)
        (signature,) = self._interpreter.get_signature_list()
        self._signature = self._interpreter.get_signature_runner(signature)
        self._lock = threading.Lock()  # an interpreter has one set of buffers

    def _run_step(self, inputs: Arrays, reset: np.ndarray, state: Arrays) -> tuple[Arrays, Arrays]:
        with self._lock:
            results = self._signature(**inputs, **{RESET: reset}, **state)
        return (
            {leaf.name: results[leaf.name] for leaf in self._interface.outputs},
            {name: results[name] for name in state},
        )


def open_interpreter(path: pathlib.Path) -> Any:
    """Returns an interpreter with the model at `path`, in one thread.

    Example:

        interpreter = open_interpreter(folder / "step.tflite")
        step = interpreter.get_signature_runner()
    """
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        Interpreter = tf.lite.Interpreter
    with warnings.catch_warnings():  # TensorFlow says that its interpreter has moved
        warnings.simplefilter("ignore")
        interpreter = Interpreter(model_path=str(path), num_threads=1)
    interpreter.allocate_tensors()
    return interpreter
