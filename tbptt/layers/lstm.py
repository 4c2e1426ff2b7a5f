"""The long short-term memory (LSTM): the equations of a cell and a layer of them."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from tbptt import checks, native
from tbptt.layers.dense import linear
from tbptt.layers.dropout import drop, keep_mask
from tbptt.layers.initializers import Initializer, glorot_uniform, orthogonal
from tbptt.precision import in_effect, product
from tbptt.rebuild import rebuildable
from tbptt.seeds import split_seed
from tbptt.types import Controls, Nest, Seed
from tbptt.unroll import KEEP, check_backend, check_window, cudnn, fused, recompute, unroll

GATE_ORDER = "ifgo"  # input, forget, candidate, output: the blocks of w_x, w_h and b


class LSTMState(NamedTuple):
    """The recurrent state of an LSTM layer.

    Attributes:
      hidden: `[B, H]`, also the output of the last step; `[B, P]` with a projection.
      cell: `[B, H]`.
    """

    hidden: tf.Tensor
    cell: tf.Tensor


def lstm_step(
    inputs: Nest,
    state: LSTMState,
    vectors: dict[str, tf.Tensor],
    matmul: fused.generic.Product,
    *,
    projected: bool = False,
    zoneout: Sequence[float] = (0.0, 0.0),
) -> tuple[tf.Tensor, LSTMState]:
    """Computes one LSTM step: gates of `z_x + h @ w_h`, then the output and the new state.

        i, f, g, o = split(z_x + h @ w_h)
        c <- sigmoid(f) * c + sigmoid(i) * tanh(g)
        h <- sigmoid(o) * tanh(c)

    and, for each option that `vectors` holds (`[H]` unless another shape is given),

        mask [B, H]       (h * mask) @ w_h
        gain_h [4H]       normalise(h @ w_h) * gain_h
        peepholes [3, H]  i + p_i * c, f + p_f * c with the old c, o + p_o * c with the new
        gain_c, shift_c   tanh(normalise(c) * gain_c + shift_c)

    Args:
      inputs: `z_x` `[B, 4H]`, the input's part of the gates, `x @ w_x + b`; with zoneout in
        training also `keep_hidden` and `keep_cell`, bools, true for units that take the new value.
      state: `[B, H]` twice.
      vectors: the vectors of the options, see above.
      matmul: `(a, name) -> a @ w`, for `w_h` `[H, 4H]` and `w_p` `[H, P]`.
      projected: whether to project the output, `h <- h @ w_p`.
      zoneout: rates of hidden state and cell. Without bools, the new value is the mean of the
        old one, weighted by the rate, and the new one.

    Returns:
      The output `h`, and the new state.
    """
    hidden, cell = state
    if "mask" in vectors:
        hidden = hidden * vectors["mask"]
    z_h = matmul(hidden, "w_h")
    if "gain_h" in vectors:
        z_h = normalise(z_h) * vectors["gain_h"]
    i, f, g, o = tf.split(inputs["z_x"] + z_h, 4, axis=-1)
    if "peepholes" in vectors:
        p_i, p_f, p_o = tf.unstack(vectors["peepholes"])
        i, f = i + p_i * cell, f + p_f * cell
    new_cell = tf.sigmoid(f) * cell + tf.sigmoid(i) * tf.tanh(g)
    if "peepholes" in vectors:
        o = o + p_o * new_cell
    shown = new_cell
    if "gain_c" in vectors:
        shown = normalise(new_cell) * vectors["gain_c"] + vectors["shift_c"]
    new_hidden = tf.sigmoid(o) * tf.tanh(shown)
    if projected:
        new_hidden = matmul(new_hidden, "w_p")
    new_hidden = _zone(inputs.get("keep_hidden"), zoneout[0], state.hidden, new_hidden)
    new_cell = _zone(inputs.get("keep_cell"), zoneout[1], cell, new_cell)
    return new_hidden, LSTMState(new_hidden, new_cell)


def _zone(keep: tf.Tensor | None, rate: float, old: tf.Tensor, new: tf.Tensor) -> tf.Tensor:
    if rate == 0.0:
        return new
    return rate * old + (1.0 - rate) * new if keep is None else tf.where(keep, new, old)


def normalise(x: tf.Tensor, epsilon: float = 1e-5) -> tf.Tensor:
    """Normalises the last axis, `(x - mean) / sqrt(variance + epsilon)`, as layer norm does.

    Reference: Ba, Kiros & Hinton (2016), Layer normalization.
    """
    centred = x - tf.reduce_mean(x, axis=-1, keepdims=True)
    variance = tf.reduce_mean(centred * centred, axis=-1, keepdims=True)
    return centred * tf.math.rsqrt(variance + epsilon)


@rebuildable
class LSTM(tf.Module):
    """A layer of long short-term memory (LSTM) cells; it implements `Core`.

    Attributes:
      w_x: `[input_size, 4 * hidden_size]`, blocks in `GATE_ORDER`.
      w_h: `[output_size, 4 * hidden_size]`.
      b: `[4 * hidden_size]`; the forget gate's block starts at `forget_bias`, the rest at 0.
      output_size: H, or P with a projection.
      initial_hidden, initial_cell: `[output_size]`, `[hidden_size]`, initially zero; trained only
        with `learn_initial_state`.
      peepholes: `[3, hidden_size]`, for i, f and o, initially zero; only with `peepholes`.
      gain_x, gain_h, gain_c, shift_c: `[4 * hidden_size]` twice, `[hidden_size]` twice; only
        with `layer_norm`.
      w_p: `[hidden_size, projection_size]`; only with `projection_size`.

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
        peepholes: bool = False,
        layer_norm: bool = False,
        projection_size: int | None = None,
        recurrent_dropout: float = 0.0,
        weight_dropout: float = 0.0,
        zoneout: tuple[float, float] = (0.0, 0.0),
        backend: str = "auto",
        keep: str = "gates",
        compute_dtype: tf.DType | None = None,
        dtype: tf.DType = tf.float32,
        name: str | None = None,
    ) -> None:
        """Creates the layer's parameters.

        Args:
          input_size: D.
          hidden_size: H.
          seed: int32 `[2]`, the seed of the initial weights.
          initializer: initializer of all matrices. None: Glorot for w_x and w_p, orthogonal for w_h
              where it is square, else Glorot.
          forget_bias: initial value of the forget gate's bias.
          learn_initial_state: whether rows that reset start from a learned state instead of zeros.
          peepholes: whether the gates see the cell (Gers, Schraudolph & Schmidhuber, 2002).
          layer_norm: whether to normalise both products and the cell (Ba, Kiros & Hinton, 2016).
          projection_size: P: the output and the hidden state are a projection of H units to P
              (Sak, Senior & Beaufays, 2014).
          recurrent_dropout: rate at which the hidden state is dropped before w_h, in training, by
              one mask a window (Gal & Ghahramani, 2016).
          weight_dropout: rate at which the entries of w_h are dropped, in training, by one mask a
              window for all rows (DropConnect; Merity, Keskar & Socher, 2018).
          zoneout: rates at which units of the hidden state and of the cell keep their old value,
              by a mask a step in training, in expectation else (Krueger et al., 2017).
          backend: `fused`, with a gradient of its own; `scan` or `reference`, see `unroll`; these
              take all options. `native`, kernels for CPUs in float32, see `native`, for layers
              without peepholes, layer norm, projection and zoneout. `auto`, which is `native` where
              that is available and `fused` elsewhere. Or `cudnn`, on a GPU outside of XLA, which
              refuses resets and most options, see `unroll.cudnn`.
          keep: the values kept for the gradient: `gates`, or `states` (gradient checkpointing),
              which recomputes the gates, see `unroll.recompute`: less memory, more time.
          compute_dtype: the type of the matrix products, see `precision.product`. None: `dtype`.
          dtype: the type of parameters, inputs and state.
          name: the name of the module.
        """
        super().__init__(name=name)
        checks.check_at_least("input_size", input_size, 1)
        checks.check_at_least("hidden_size", hidden_size, 1)
        if projection_size is not None:
            checks.check_at_least("projection_size", projection_size, 1)
        for label, rate in (
            ("recurrent_dropout", recurrent_dropout),
            ("weight_dropout", weight_dropout),
            ("zoneout of the hidden state", zoneout[0]),
            ("zoneout of the cell", zoneout[1]),
        ):
            checks.check_between(label, rate, 0.0, 1.0)
        check_backend(backend, "native", "fused", "cudnn")
        checks.check_choice("keep", keep, KEEP)
        self.output_size = projection_size or hidden_size
        self._hidden_size = hidden_size
        self._recurrent_dropout, self._weight_dropout = recurrent_dropout, weight_dropout
        self._zoneout = tuple(zoneout)
        self._backend = backend
        self._keep = keep
        self._compute_dtype = checks.check_compute_dtype(compute_dtype, dtype)
        if backend == "cudnn":
            cudnn.check_layer(
                dtype,
                peepholes=peepholes,
                layer_norm=layer_norm,
                projection_size=projection_size,
                recurrent_dropout=recurrent_dropout,
                zoneout=self._zoneout,
                compute_dtype=self._compute_dtype,
            )
        if backend == "native":
            native.check_layer(
                dtype,
                self._compute_dtype,
                peepholes=peepholes,
                layer_norm=layer_norm,
                projection_size=projection_size,
                zoneout=self._zoneout,
            )

        seed_x, seed_h = split_seed(seed, 2)
        init_x = initializer or glorot_uniform()
        init_h = initializer or (glorot_uniform() if projection_size else orthogonal())
        gates = 4 * hidden_size
        self.w_x = tf.Variable(init_x([input_size, gates], seed_x, dtype), name="w_x")
        self.w_h = tf.Variable(init_h([self.output_size, gates], seed_h, dtype), name="w_h")
        bias = [forget_bias if gate == "f" else 0.0 for gate in GATE_ORDER]
        self.b = tf.Variable(tf.repeat(tf.constant(bias, dtype), hidden_size), name="b")
        optional = {}
        if projection_size:
            shape, seed_p = [hidden_size, projection_size], split_seed(seed, 3)[2]
            optional["w_p"] = init_x(shape, seed_p, dtype)
        if peepholes:
            optional["peepholes"] = tf.zeros([3, hidden_size], dtype)
        if layer_norm:
            optional |= {"gain_x": tf.ones([gates], dtype), "gain_h": tf.ones([gates], dtype)}
            optional |= {"gain_c": tf.ones([hidden_size], dtype)}
            optional |= {"shift_c": tf.zeros([hidden_size], dtype)}
        for key, value in optional.items():
            setattr(self, key, tf.Variable(value, name=key))
        self._optional = tuple(optional)
        # If the initial state is not learned it is a constant, not a parameter.
        make = tf.Variable if learn_initial_state else tf.constant
        self.initial_hidden = make(tf.zeros([self.output_size], dtype), name="initial_hidden")
        self.initial_cell = make(tf.zeros([hidden_size], dtype), name="initial_cell")

    def initial_state(self, rows: int) -> LSTMState:
        """Returns the state of rows that have read nothing, `[rows, H]` twice."""
        return _initial_state(rows, self.initial_hidden, self.initial_cell)

    def __call__(
        self,
        inputs: tf.Tensor,
        state: LSTMState,
        controls: Controls = Controls(),
        *,
        training: bool = False,
        seed: Seed | None = None,
    ) -> tuple[tf.Tensor, LSTMState]:
        """Runs the layer over a window: `inputs [T, B, D]` to `outputs [T, B, H]` and a new state.

        `controls` holds the resets and cuts inside the window, as in `unroll`.

        Raises:
          ValueError: dropout or zoneout needs a seed, and there is none; or the backend or `keep`
            does not support the controls.
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
            for name in ("w_x", "w_h", "b", "initial_hidden", "initial_cell", *self._optional)
        }
        if training:
            self._add_masks(given, weights, seed)
        if self._keep == "states":
            return recompute.run(self._run, given, state, weights)
        return self._run(given, state, weights, controls.advance)

    def _add_masks(self, given: Nest, weights: Nest, seed: Seed | None) -> None:
        """Adds the masks of dropout and zoneout for this window to `given` and `weights`."""
        steps, rows = given["x"].shape[:2]
        seeds = [None] * 4 if seed is None else split_seed(seed, 4)
        if self._recurrent_dropout:
            ones = tf.ones([rows, self.output_size], given["x"].dtype)
            weights["mask"] = drop(ones, self._recurrent_dropout, seeds[0])
        if self._weight_dropout:
            weights["w_h"] = drop(weights["w_h"], self._weight_dropout, seeds[1])
        sizes = (self.output_size, self._hidden_size)
        for k, name in enumerate(("keep_hidden", "keep_cell")):
            if self._zoneout[k]:
                given[name] = keep_mask([steps, rows, sizes[k]], self._zoneout[k], seeds[2 + k])

    def _run(
        self, given: Nest, state: LSTMState, weights: Nest, advance: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, LSTMState]:
        """Runs a window or a segment of one; a pure function of its arguments."""
        if self._backend == "cudnn":
            w_x, w_h, b = (weights[name] for name in ("w_x", "w_h", "b"))
            outputs, final = cudnn.lstm(given["x"], w_x, w_h, b, tuple(state))
            return outputs, LSTMState(*final)
        controls = Controls(given.get("reset"), given.get("gradient_scale"), advance)
        initial = None  # zeros, which need no gradient at every reset
        if isinstance(self.initial_hidden, tf.Variable):
            hidden, cell_state = weights["initial_hidden"], weights["initial_cell"]
            initial = _initial_state(given["x"].shape[1], hidden, cell_state)
        mask, kind = weights.get("mask"), in_effect(self._compute_dtype)
        backend = "fused" if self._backend == "auto" else self._backend
        plain = not (self._optional or any(self._zoneout))
        if plain:
            backend = native.resolve(self._backend, given["x"].dtype, kind)
        if backend == "native":
            outputs, final = native.loops.lstm(
                given["x"],
                weights["w_x"],
                weights["w_h"],
                weights["b"],
                tuple(state),
                controls,
                initial,
                mask=mask,
                compute_dtype=kind,
            )
            return outputs, LSTMState(*final)

        z_x = linear(given["x"], weights["w_x"], self._compute_dtype)
        if "gain_x" in weights:
            z_x = normalise(z_x) * weights["gain_x"]
        z_x = z_x + weights["b"]  # [T, B, 4H], all steps at once
        if plain and backend == "fused":
            outputs, final = fused.lstm.run(
                z_x,
                weights["w_h"],
                tuple(state),
                controls,
                initial,
                mask=mask,
                compute_dtype=kind,
            )
            return outputs, LSTMState(*final)

        inputs = {"z_x": z_x} | {name: given[name] for name in given if name.startswith("keep")}
        named = ("mask", "peepholes", "gain_h", "gain_c", "shift_c")
        vectors = {name: weights[name] for name in named if name in weights}
        matrices = {name: weights[name] for name in ("w_h", "w_p") if name in weights}
        step = functools.partial(lstm_step, projected="w_p" in matrices, zoneout=self._zoneout)
        if backend == "fused":
            return fused.generic.run(
                step,
                inputs,
                state,
                controls,
                initial,
                vectors,
                matrices,
                compute_dtype=self._compute_dtype,
            )

        def matmul(a: tf.Tensor, name: str) -> tf.Tensor:
            return product(a, matrices[name], self._compute_dtype)

        def cell(inputs_t: Nest, s: LSTMState) -> tuple[tf.Tensor, LSTMState]:
            return step(inputs_t, s, vectors=vectors, matmul=matmul)

        return unroll(
            cell,
            inputs,
            state,
            controls,
            initial_state=initial,
            backend=backend,
        )


def _initial_state(rows: int, hidden: tf.Tensor, cell: tf.Tensor) -> LSTMState:
    return LSTMState(*(tf.broadcast_to(v, [rows, v.shape[0]]) for v in (hidden, cell)))
