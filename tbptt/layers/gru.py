"""The gated recurrent unit (GRU): the equations of a cell and a layer of them."""

from typing import NamedTuple

import tensorflow as tf

from tbptt import checks, native
from tbptt.layers.dense import linear
from tbptt.layers.dropout import drop
from tbptt.layers.initializers import Initializer, glorot_uniform, orthogonal
from tbptt.precision import in_effect, product
from tbptt.rebuild import rebuildable
from tbptt.seeds import split_seed
from tbptt.types import Controls, Nest, Seed
from tbptt.unroll import KEEP, check_backend, check_window, cudnn, fused, recompute, unroll


class GRUState(NamedTuple):
    """The recurrent state of a GRU layer.

    Attributes:
      hidden: `[B, H]`, also the output of the last step.
    """

    hidden: tf.Tensor


def gru_step(
    z_x: tf.Tensor, state: GRUState, z_h: tf.Tensor, b_h: tf.Tensor
) -> tuple[tf.Tensor, GRUState]:
    """Runs a GRU cell for one step; the reset gate acts after the product, as in cuDNN and PyTorch.

        r, u, n = split(z_h),  r <- sigmoid(x_r + r),  u <- sigmoid(x_u + u)
        n <- tanh(x_n + r * (n + b_h))
        h <- (1 - u) * n + u * h

    Args:
      z_x: `[B, 3H]`, the input's part of the gates, `x @ w_x + b`.
      state: `[B, H]`.
      z_h: `[B, 3H]`, the hidden state's part, `h @ w_h`.
      b_h: `[H]`, the candidate's bias inside the product with the reset gate.

    Returns:
      The output `h`, and the new state.
    """
    x_r, x_u, x_n = tf.split(z_x, 3, axis=-1)
    h_r, h_u, h_n = tf.split(z_h, 3, axis=-1)
    r = tf.sigmoid(x_r + h_r)
    u = tf.sigmoid(x_u + h_u)
    n = tf.tanh(x_n + r * (h_n + b_h))
    hidden = (1.0 - u) * n + u * state.hidden
    return hidden, GRUState(hidden)


@rebuildable
class GRU(tf.Module):
    """A layer of gated recurrent units (GRU); it implements `Core`.

    Attributes:
      w_x: `[input_size, 3 * hidden_size]`, blocks reset, update, candidate.
      w_h: `[hidden_size, 3 * hidden_size]`.
      b: `[3 * hidden_size]`, initially zero.
      b_h: `[hidden_size]`, initially zero.
      initial_hidden: `[hidden_size]`, initially zero; trained only with `learn_initial_state`.

    Example:
      >>> gru = GRU(3, 5, seed=make_seed(0))
      >>> outputs, state = gru(tf.ones([7, 2, 3]), gru.initial_state(2))
      >>> outputs.shape.as_list(), state.hidden.shape.as_list()
      ([7, 2, 5], [2, 5])

    Reference: Cho et al. (2014), Learning phrase representations using RNN
      encoder-decoder; this variant is Chung et al. (2014) as cuDNN has it.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        seed: Seed,
        initializer: Initializer | None = None,
        learn_initial_state: bool = False,
        recurrent_dropout: float = 0.0,
        weight_dropout: float = 0.0,
        backend: str = "auto",
        keep: str = "gates",
        compute_dtype: tf.DType | None = None,
        dtype: tf.DType = tf.float32,
        name: str | None = None,
    ) -> None:
        """Creates the layer's parameters; the arguments are those of `LSTM`."""
        super().__init__(name=name)
        seed_x, seed_h = split_seed(seed, 2)
        checks.check_at_least("input_size", input_size, 1)
        checks.check_at_least("hidden_size", hidden_size, 1)
        checks.check_between("recurrent_dropout", recurrent_dropout, 0.0, 1.0)
        checks.check_between("weight_dropout", weight_dropout, 0.0, 1.0)
        check_backend(backend, "native", "fused", "cudnn")
        checks.check_choice("keep", keep, KEEP)
        self.output_size = hidden_size
        self._recurrent_dropout, self._weight_dropout = recurrent_dropout, weight_dropout
        self._backend = backend
        self._keep = keep
        self._compute_dtype = checks.check_compute_dtype(compute_dtype, dtype)
        if backend == "cudnn":
            cudnn.check_layer(
                dtype, recurrent_dropout=recurrent_dropout, compute_dtype=self._compute_dtype
            )
        if backend == "native":
            native.check_layer(dtype, self._compute_dtype)
        init_x = initializer or glorot_uniform()
        init_h = initializer or orthogonal()
        self.w_x = tf.Variable(init_x([input_size, 3 * hidden_size], seed_x, dtype), name="w_x")
        self.w_h = tf.Variable(init_h([hidden_size, 3 * hidden_size], seed_h, dtype), name="w_h")
        self.b = tf.Variable(tf.zeros([3 * hidden_size], dtype), name="b")
        self.b_h = tf.Variable(tf.zeros([hidden_size], dtype), name="b_h")
        make = tf.Variable if learn_initial_state else tf.constant
        self.initial_hidden = make(tf.zeros([hidden_size], dtype), name="initial_hidden")

    def initial_state(self, rows: int) -> GRUState:
        """Returns the state of rows that have read nothing, `[rows, H]`."""
        return GRUState(tf.broadcast_to(self.initial_hidden, [rows, self.output_size]))

    def __call__(
        self,
        inputs: tf.Tensor,
        state: GRUState,
        controls: Controls = Controls(),
        *,
        training: bool = False,
        seed: Seed | None = None,
    ) -> tuple[tf.Tensor, GRUState]:
        """Runs the layer over a window: `inputs [T, B, D]` to `outputs [T, B, H]` and a new state.

        `controls` holds the resets and cuts inside the window, as in `unroll`.

        Raises:
          ValueError: dropout needs a seed, and there is none; or the backend or `keep` does not
            support the controls.
        """
        if self._backend == "cudnn":
            cudnn.check_controls(controls)
        if self._keep == "states" and controls.advance is not None:
            raise ValueError(recompute.NO_ADVANCE)
        check_window(inputs, state, controls, self.initial_state(inputs.shape[1]))
        by_step = {"reset": controls.reset, "gradient_scale": controls.gradient_scale}
        given = {"x": inputs} | {name: c for name, c in by_step.items() if c is not None}
        weights = {
            name: tf.convert_to_tensor(getattr(self, name))  # read once, not once a step
            for name in ("w_x", "w_h", "b", "b_h", "initial_hidden")
        }
        if training:
            seeds = [None] * 2 if seed is None else split_seed(seed, 2)
            if self._recurrent_dropout:
                ones = tf.ones([inputs.shape[1], self.output_size], inputs.dtype)
                weights["mask"] = drop(ones, self._recurrent_dropout, seeds[0])
            if self._weight_dropout:
                weights["w_h"] = drop(weights["w_h"], self._weight_dropout, seeds[1])
        if self._keep == "states":
            return recompute.run(self._run, given, state, weights)
        return self._run(given, state, weights, controls.advance)

    def _run(
        self, given: Nest, state: GRUState, weights: Nest, advance: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, GRUState]:
        """Runs a window or a segment of one; a pure function of its arguments."""
        if self._backend == "cudnn":
            w_x, w_h, b, b_h = (weights[name] for name in ("w_x", "w_h", "b", "b_h"))
            outputs, final = cudnn.gru(given["x"], w_x, w_h, b, b_h, tuple(state))
            return outputs, GRUState(*final)
        z_x = linear(given["x"], weights["w_x"], self._compute_dtype)
        controls = Controls(given.get("reset"), given.get("gradient_scale"), advance)
        mask = weights.get("mask")
        w_h, b_h = weights["w_h"], weights["b_h"]
        rows = z_x.shape[1]
        initial = None  # zeros, which need no gradient at every reset
        if isinstance(self.initial_hidden, tf.Variable):
            learned = weights["initial_hidden"]
            initial = GRUState(tf.broadcast_to(learned, [rows, self.output_size]))
        kind = in_effect(self._compute_dtype)
        backend = native.resolve(self._backend, z_x.dtype, kind)
        if backend == "native":
            b = weights["b"]
            outputs, final = native.loops.gru(
                z_x, w_h, b, b_h, tuple(state), controls, initial, mask=mask, compute_dtype=kind
            )
            return outputs, GRUState(*final)
        z_x = z_x + weights["b"]  # [T, B, 3H], all steps at once
        if backend == "fused":
            outputs, final = fused.gru.run(
                z_x, w_h, b_h, tuple(state), controls, initial, mask=mask, compute_dtype=kind
            )
            return outputs, GRUState(*final)

        def cell(z_t: tf.Tensor, s: GRUState) -> tuple[tf.Tensor, GRUState]:
            hidden = s.hidden if mask is None else s.hidden * mask
            return gru_step(z_t, s, product(hidden, w_h, self._compute_dtype), b_h)

        return unroll(
            cell,
            z_x,
            state,
            controls,
            initial_state=initial,
            backend=backend,
        )
