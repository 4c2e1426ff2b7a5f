"""`Recurrent`: makes a layer of a cell of one's own, with resets, backends and training."""

from collections.abc import Callable

import tensorflow as tf

from tbptt.rebuild import rebuildable
from tbptt.types import Controls, Nest, Seed, State
from tbptt.unroll import Cell, check_backend, unroll


@rebuildable
class Recurrent(tf.Module):
    """Makes a `Core` of any cell `(inputs_t, state) -> (output_t, state)`, ready for training.

    Example: leaky integration with one learned rate.
      >>> class Leaky(tf.Module):
      ...     def __init__(self):
      ...         super().__init__()
      ...         self.rate = tf.Variable(0.5)
      ...     def __call__(self, inputs, state):
      ...         state = state + self.rate * (inputs - state)
      ...         return state, state
      >>> core = Recurrent(Leaky(), lambda rows: tf.zeros([rows, 3]), output_size=3)
      >>> outputs, state = core(tf.ones([2, 1, 3]), core.initial_state(1))
      >>> state.numpy().tolist()
      [[0.75, 0.75, 0.75]]
    """

    def __init__(
        self,
        cell: Cell,
        initial_state: Callable[[int], State],
        *,
        output_size: int,
        backend: str = "auto",
        name: str | None = None,
    ) -> None:
        """Wraps a cell of one's own.

        Args:
          cell: `(inputs_t, state) -> (output_t, state)`. A `tf.Module`, if it has
              parameters: the parameters of a bare function are not found, and so not trained.
          initial_state: returns the initial state, leaves `[rows, ...]`, given the number of rows.
          output_size: the size of the last axis of the outputs.
          backend: see `unroll`.
          name: the name of the module.
        """
        super().__init__(name=name)
        self._cell = cell
        self._initial_state = initial_state
        self.output_size = output_size
        check_backend(backend)
        self._backend = backend

    def initial_state(self, rows: int) -> State:
        """Returns the state of rows that have read nothing."""
        return self._initial_state(rows)

    def __call__(
        self,
        inputs: Nest,
        state: State,
        controls: Controls = Controls(),
        *,
        training: bool = False,
        seed: Seed | None = None,
    ) -> tuple[Nest, State]:
        """Runs the cell over a window, `inputs [T, B, ...]`; returns outputs and the new state."""
        del training, seed  # a cell sees its inputs and its state
        rows = tf.nest.flatten(inputs)[0].shape[1]
        return unroll(
            self._cell,
            inputs,
            state,
            controls,
            initial_state=self.initial_state(rows),
            backend=self._backend,
        )
