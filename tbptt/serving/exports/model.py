"""`ExportedModel`: an export of any kind in the place of a model, for sampling and sessions."""

import tensorflow as tf

from tbptt.serving.exports.errors import ExportError
from tbptt.serving.exports.opened import Export
from tbptt.types import State


class ExportedModel:
    """Runs an export where a model is expected, as in `Sampler`, `beam_search` and `Streamer`.

    An export may be no program of TensorFlow's, so it cannot be a part of one: TensorFlow's
    functions must run step by step, `tf.config.run_functions_eagerly(True)`.

    Attributes:
      vocabulary_size: the number of ids that it reads. None: not known.

    Example:

        tf.config.run_functions_eagerly(True)
        model = ExportedModel(open_export("exported"))
        Sampler(model, jit_compile=False).sample(ids, 100, [[0, 1]])
    """

    def __init__(self, export: Export) -> None:
        """Takes an export with one array of inputs, and one of outputs.

        Raises:
          ExportError: it has several.
        """
        interface = export.interface
        if len(interface.inputs) != 1 or len(interface.outputs) != 1:
            raise ExportError(
                f"{str(export.folder)!r} has {len(interface.inputs)} arrays of inputs and "
                f"{len(interface.outputs)} of outputs, but only one of each can take the place of "
                "a model. Call its `step`."
            )
        self._export, self._leaves = export, [leaf.name for leaf in interface.state]
        self.vocabulary_size = interface.vocabulary_size

    def initial_state(self, rows: int) -> State:
        """Returns the state of rows that have read nothing, tensors by name."""
        arrays = self._export.initial_state(rows)
        return {name: tf.constant(arrays[name]) for name in self._leaves}

    def __call__(self, inputs: tf.Tensor, state: State) -> tuple[tf.Tensor, State]:
        """Computes outputs `[T, B, ...]` for `inputs [T, B, ...]`, and the new state.

        Raises:
          ExportError: a function of TensorFlow is being traced.
        """
        if not tf.executing_eagerly():
            raise ExportError(
                "An export cannot be a part of a TensorFlow function. Call "
                "tf.config.run_functions_eagerly(True) first."
            )
        before = {name: state[name].numpy() for name in self._leaves}
        outputs, after = self._export.step(inputs.numpy(), before)
        return tf.constant(outputs), {name: tf.constant(after[name]) for name in self._leaves}
