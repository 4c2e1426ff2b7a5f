"""`Stack`: several recurrent layers on top of each other."""

from collections.abc import Sequence

import tensorflow as tf

from tbptt.layers.dropout import check_dropout, dropout
from tbptt.rebuild import rebuildable
from tbptt.seeds import split_seed
from tbptt.types import Controls, Core, Nest, Seed


@rebuildable
class Stack(tf.Module):
    """Runs recurrent layers on top of each other; the state is a tuple, one entry a layer.

    Args:
      cores: the layers from the input up; the input size of each is the output size of the one
        below.
      dropout_rate: rate of dropout between layers, never between steps; only in training.
      dropout_per: `step` or `window`, see `dropout`.

    Example:
      >>> lower, upper = LSTM(3, 5, seed=make_seed(0)), GRU(5, 4, seed=make_seed(1))
      >>> stack = Stack([lower, upper])
      >>> outputs, state = stack(tf.ones([7, 2, 3]), stack.initial_state(2))
      >>> outputs.shape.as_list(), type(state[1]).__name__
      ([7, 2, 4], 'GRUState')
    """

    def __init__(
        self,
        cores: Sequence[Core],
        *,
        dropout_rate: float = 0.0,
        dropout_per: str = "step",
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        check_dropout(dropout_rate, dropout_per)
        self.cores = tuple(cores)
        self.output_size = self.cores[-1].output_size
        self._dropout_rate = dropout_rate
        self._dropout_per = dropout_per

    def initial_state(self, rows: int) -> tuple[Nest, ...]:
        """Returns the initial states of the layers, from the input up."""
        return tuple(core.initial_state(rows) for core in self.cores)

    def __call__(
        self,
        inputs: Nest,
        state: tuple[Nest, ...],
        controls: Controls = Controls(),
        *,
        training: bool = False,
        seed: Seed | None = None,
    ) -> tuple[Nest, tuple[Nest, ...]]:
        """Runs the layers over a window `[T, B, D]`; returns the top's outputs and new states."""
        rate = self._dropout_rate if training else 0.0
        seeds = [None] * len(self.cores) if seed is None else split_seed(seed, len(self.cores))
        new_state = []
        for layer, (core, old) in enumerate(zip(self.cores, state, strict=True)):
            between, inside = (None, None) if seeds[layer] is None else split_seed(seeds[layer], 2)
            if layer > 0:
                inputs = dropout(inputs, rate, between, per=self._dropout_per)
            inputs, new = core(inputs, old, controls, training=training, seed=inside)
            new_state.append(new)
        return inputs, tuple(new_state)
