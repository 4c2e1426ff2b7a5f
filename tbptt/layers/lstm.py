"""The long short-term memory."""

from typing import NamedTuple

import tensorflow as tf

from tbptt import checks
from tbptt.layers.dense import linear
from tbptt.layers.initializers import Initializer, glorot_uniform, orthogonal
from tbptt.seeds import split_seed
from tbptt.types import Seed
from tbptt.unroll import check_backend, check_window, fused, unroll

GATE_ORDER = "ifgo"  # input, forget, candidate, output: the blocks of w_x, w_h and b


class LSTMState(NamedTuple):
    """What an LSTM remembers.

    Attributes:
      hidden: `[B, H]`, also the output of the last step.
      cell: `[B, H]`.
    """

    hidden: tf.Tensor
    cell: tf.Tensor


def lstm_step(z_x: tf.Tensor, state: LSTMState, w_h: tf.Tensor) -> tuple[tf.Tensor, LSTMState]:
    """One step.

        i, f, g, o = split(z_x + h @ w_h)
        c <- sigmoid(f) * c + sigmoid(i) * tanh(g)
        h <- sigmoid(o) * tanh(c)

    Args:
      z_x: `[B, 4H]`, the input's part of the gates, `x @ w_x + b`.
      state: `[B, H]` twice.
      w_h: `[H, 4H]`.

    Returns:
      the output `h`, and the new state.
    """
    i, f, g, o = tf.split(z_x + state.hidden @ w_h, 4, axis=-1)
    cell = tf.sigmoid(f) * state.cell + tf.sigmoid(i) * tf.tanh(g)
    hidden = tf.sigmoid(o) * tf.tanh(cell)
    return hidden, LSTMState(hidden, cell)


class LSTM(tf.Module):
    """A layer of LSTM cells, a `Core`.

    Attributes:
      w_x: `[input_size, 4 * hidden_size]`, blocks in `GATE_ORDER`.
      w_h: `[hidden_size, 4 * hidden_size]`.
      b: `[4 * hidden_size]`; the forget gate's block starts at `forget_bias`, the rest at 0.
      initial_hidden, initial_cell: `[hidden_size]`, zero at first; only with
        `learn_initial_state`.

    Example:
      >>> lstm = LSTM(3, 5, seed=make_seed(0))
      >>> outputs, state = lstm(tf.ones([7, 2, 3]), lstm.initial_state(2))
      >>> outputs.shape.as_list(), state.cell.shape.as_list()
      ([7, 2, 5], [2, 5])

    Reference: Hochreiter & Schmidhuber (1997), Long short-term memory; the forget gate is
      of Gers, Schmidhuber & Cummins (2000), its bias of Jozefowicz et al. (2015).
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        seed: Seed,
        initializer: Initializer | None = None,
        forget_bias: float = 1.0,
        learn_initial_state: bool = False,
        backend: str = "auto",
        dtype: tf.DType = tf.float32,
        name: str | None = None,
    ) -> None:
        """Args:
        input_size: D.
        hidden_size: H.
        seed: int32 `[2]`, of the first weights.
        initializer: of both weights. None: Glorot for w_x, orthogonal blocks for w_h.
        forget_bias: first value of the forget gate's bias.
        learn_initial_state: rows that reset start from a learned state instead of zeros.
        backend: `fused`, with a gradient of its own; `scan` or `reference`, see `unroll`; or
            `auto`, which is `fused`.
        dtype: of parameters, inputs and state.
        name: of the module.
        """
        super().__init__(name=name)
        seed_x, seed_h = split_seed(seed, 2)
        checks.check_at_least("input_size", input_size, 1)
        checks.check_at_least("hidden_size", hidden_size, 1)
        self.output_size = hidden_size
        check_backend(backend, "fused")
        self._backend = backend
        init_x = initializer or glorot_uniform()
        init_h = initializer or orthogonal()
        self.w_x = tf.Variable(init_x([input_size, 4 * hidden_size], seed_x, dtype), name="w_x")
        self.w_h = tf.Variable(init_h([hidden_size, 4 * hidden_size], seed_h, dtype), name="w_h")
        bias = [forget_bias if gate == "f" else 0.0 for gate in GATE_ORDER]
        self.b = tf.Variable(tf.repeat(tf.constant(bias, dtype), hidden_size), name="b")
        # Constants hold no parameter, so a plain tensor serves where nothing is learned.
        make = tf.Variable if learn_initial_state else tf.constant
        self.initial_hidden = make(tf.zeros([hidden_size], dtype), name="initial_hidden")
        self.initial_cell = make(tf.zeros([hidden_size], dtype), name="initial_cell")

    def initial_state(self, batch_size: int) -> LSTMState:
        """The state of rows that have read nothing, `[batch_size, H]` twice."""
        shape = [batch_size, self.output_size]
        return LSTMState(
            tf.broadcast_to(self.initial_hidden, shape),
            tf.broadcast_to(self.initial_cell, shape),
        )

    def __call__(
        self,
        inputs: tf.Tensor,
        state: LSTMState,
        *,
        reset: tf.Tensor | None = None,
        training: bool = False,
        seed: Seed | None = None,
    ) -> tuple[tf.Tensor, LSTMState]:
        """`inputs [T, B, D] -> outputs [T, B, H]`, and the state after the last step."""
        del training, seed  # nothing here is random
        z_x = linear(inputs, self.w_x) + self.b  # [T, B, 4H], no step needs another
        w_h = tf.convert_to_tensor(self.w_h)  # read once, not once a step
        initial = self.initial_state(inputs.shape[1])
        if self._backend in ("auto", "fused"):
            initial = check_window(z_x, state, reset, initial)
            outputs, final = fused.lstm(z_x, w_h, tuple(state), reset, tuple(initial))
            return outputs, LSTMState(*final)

        def cell(z_t: tf.Tensor, s: LSTMState) -> tuple[tf.Tensor, LSTMState]:
            return lstm_step(z_t, s, w_h)

        return unroll(cell, z_x, state, reset, initial_state=initial, backend=self._backend)
