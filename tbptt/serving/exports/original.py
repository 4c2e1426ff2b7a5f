"""`Original`: runs the model that was exported, in windows as in training, to compare with."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tbptt import losses
from tbptt.serving.exports.interface import Arrays, named_arrays
from tbptt.serving.exports.program import Program
from tbptt.types import Controls, Nest, State

WINDOW_LENGTHS = (256, 8, 1)  # windows that are traced, if they are needed

Scores = Callable[[Arrays, np.ndarray], np.ndarray]
"""`(outputs by name, targets) -> [T, B]`: the loss of every step."""


class Original:
    """Runs a model's own forward pass, with resets inside its windows, as the runners of exports.

    It is TensorFlow's program that was trained, and not the one-step program that is exported, so
    a difference between the two is seen.
    """

    def __init__(self, program: Program) -> None:
        """Takes the model of a program."""
        self._program = program
        self._windows: dict[tuple[int, int], Callable[..., tuple[Nest, State]]] = {}

    def _window(self, given: Nest, state: State, reset: tf.Tensor) -> tuple[Nest, State]:
        """Runs a window; each size is traced once."""
        size = tuple(reset.shape)
        if size not in self._windows:
            model = self._program.model
            run = tf.function(lambda x, s, r: model(x, s, Controls(r)), autograph=False)
            self._windows[size] = run.get_concrete_function(given, state, reset)
        return self._windows[size](given, state, reset)

    def initial_state(self, rows: int) -> Arrays:
        """Returns the state of so many rows that have read nothing."""
        return self._program.initial_state(rows)

    def run(self, inputs: Arrays, reset: np.ndarray, state: Arrays) -> tuple[Arrays, Arrays]:
        """Runs the steps of `inputs [T, B, ...]`; returns outputs and the state."""
        steps, parts = len(reset), []
        nest = self._program.pack_state(state)
        read = 0
        while read < steps:
            size = next(size for size in WINDOW_LENGTHS if size <= steps - read)
            now = slice(read, read + size)
            given = self._program.pack_inputs({name: x[now] for name, x in inputs.items()})
            outputs, nest = self._window(given, nest, tf.constant(reset[now]))
            parts.append(named_arrays(outputs, "outputs"))
            read += size
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return joined, named_arrays(nest, "state")


def scores_of(program: Program) -> Scores | None:
    """Returns the loss of a model's outputs, or None if the model does not say which it has.

    It is the cross entropy of a language model's logits, and the loss that any other model of this
    library was made with.
    """
    (first, *others), size = program.interface.outputs, program.interface.vocabulary_size
    if others:
        return None
    loss = getattr(program.model, "_loss", None)
    if loss is None and size is not None and first.shape == (size,):
        loss = losses.cross_entropy
    if loss is None:
        return None

    def scores(outputs: Arrays, targets: np.ndarray) -> np.ndarray:
        return np.asarray(loss(tf.constant(outputs[first.name]), tf.constant(targets)))

    return scores
