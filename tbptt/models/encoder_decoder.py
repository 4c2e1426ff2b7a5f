"""`EncoderDecoder`: forecasts several steps ahead (sequence to sequence), with teacher forcing."""

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from tbptt import checks
from tbptt.layers.dense import Dense
from tbptt.layers.dropout import check_dropout, dropout, keep_mask
from tbptt.layers.initializers import Initializer
from tbptt.losses import window_loss
from tbptt.rebuild import rebuildable
from tbptt.seeds import fold_in, split_seed
from tbptt.types import Controls, Core, Loss, Nest, Seed, State, Window, WindowLoss
from tbptt.unroll import unroll


@rebuildable
class EncoderDecoder(tf.Module):
    """Forecasts the next `steps` values from every step of a window: sequence to sequence.

        h, state = encoder(dropout(inputs), state)
        s_0 = tanh(dropout(h_t) @ w_k + b_k)          every part k of the decoder's state
        d_j, s_j = decoder(y_{j-1}, s_{j-1})          j = 1 ... steps,  y_0 = 0
        y_j = x_{j-1} + d_j @ w + b                   x_j = y_j, or the truth

    The encoder's state is carried from window to window as in any model. A decoder starts at each
    step t from the encoder's output there, and its state is dropped after its forecast. All values
    y are differences from `inputs[t, :, :D]`, the values at step t.

    Attributes:
      encoder, decoder: the recurrent layers.
      bridges: a `Dense` for every part of the decoder's state.
      readout: a `Dense`, `[H, D]` and `[D]`.

    Example: two columns, three steps ahead.
      >>> seeds = split_seed(make_seed(0), 3)
      >>> encoder, decoder = GRU(2, 8, seed=seeds[0]), GRU(2, 4, seed=seeds[1])
      >>> model = EncoderDecoder(encoder, decoder, 2, squared_error, steps=3, seed=seeds[2])
      >>> outputs, state = model(tf.zeros([5, 4, 2]), model.initial_state(4))
      >>> outputs.shape.as_list()
      [5, 4, 6]

    Reference: Cho et al. (2014), Learning phrase representations using RNN encoder-decoder for
      statistical machine translation: the bridge; Sutskever, Vinyals & Le (2014), Sequence to
      sequence learning with neural networks; Bengio et al. (2015), Scheduled sampling.
    """

    def __init__(
        self,
        encoder: Core,
        decoder: Core,
        output_size: int,
        loss: Loss,
        *,
        steps: int,
        seed: Seed,
        metrics: Mapping[str, Loss] | None = None,
        teacher_forcing: float = 0.0,
        dropout_rate: float = 0.0,
        dropout_per: str = "step",
        input_dropout_rate: float = 0.0,
        bypass: int = 0,
        initializer: Initializer | None = None,
        dtype: tf.DType = tf.float32,
        name: str | None = None,
    ) -> None:
        """Creates bridges and readout for the two given cores.

        Args:
          encoder: `[T, B, D_in - bypass] -> [T, B, H_e]`.
          decoder: `[1, N, D] -> [1, N, H]`, its state's leaves `[N, n]`. It is called once for each
            step of the forecast, with another seed: all its dropout masks hold for one step only.
          output_size: D.
          loss: `(outputs, targets) -> [T, B]`, as `squared_error`.
          steps: the number of values to forecast from each step.
          seed: int32 `[2]`, the seed of the initial weights of bridges and readout.
          metrics: further metrics by name, functions like `loss`.
          teacher_forcing: in training, the probability that the decoder reads the true value of the
            step before, from `window.targets`, instead of its own. 0: free-running; 1: always
            forced; between them: scheduled sampling.
          dropout_rate: rate of dropout on the encoder's outputs, in training.
          dropout_per: `step` or `window`, see `dropout`.
          input_dropout_rate: rate of dropout on the encoder's inputs, in training.
          bypass: the number of first inputs that the encoder does not read, see `SequenceModel`.
          initializer, dtype: for bridges and readout, see `Dense`.
          name: the name of the module.

        Raises:
          ValueError: a rate is out of range, or a part of the decoder's state is not `[N, n]`.
        """
        super().__init__(name=name)
        check_dropout(dropout_rate, dropout_per)
        check_dropout(input_dropout_rate, dropout_per)
        checks.check_at_least("output_size", output_size, 1)
        checks.check_at_least("steps", steps, 1)
        checks.check_at_least("bypass", bypass, 0)
        checks.check_at_least("teacher_forcing", teacher_forcing, 0.0)
        if teacher_forcing > 1.0:
            raise ValueError(f"teacher_forcing ({teacher_forcing}) must be a probability, 0 to 1.")
        parts = tf.nest.flatten(decoder.initial_state(1))
        for part in parts:
            checks.check_shape("decoder.initial_state(1)", part, [1, None])
        self._rates = (input_dropout_rate, dropout_rate)
        self._dropout_per = dropout_per
        self._forcing = teacher_forcing
        self._bypass = bypass
        self._loss, self._metrics = loss, dict(metrics or {})
        self._steps = steps
        self._output_size = output_size
        self.encoder = encoder
        self.decoder = decoder
        seeds = split_seed(seed, len(parts) + 1)
        shared: dict[str, Any] = dict(initializer=initializer, dtype=dtype)
        self.bridges = [
            Dense(encoder.output_size, part.shape[1], seed=one, **shared)
            for part, one in zip(parts, seeds[:-1], strict=True)
        ]
        self.readout = Dense(decoder.output_size, output_size, seed=seeds[-1], **shared)

    def initial_state(self, rows: int) -> State:
        """Returns the encoder's state of `rows` rows that have read nothing."""
        checks.check_at_least("rows", rows, 1)
        return self.encoder.initial_state(rows)

    def __call__(
        self,
        inputs: tf.Tensor,
        state: State,
        controls: Controls = Controls(),
        *,
        training: bool = False,
        seed: Seed | None = None,
    ) -> tuple[tf.Tensor, State]:
        """Forecasts `[T, B, steps * D]`, all values of the next step first; returns the state too.

        The decoder reads its own outputs, also in training; only `loss` has teacher forcing.

        Args:
          inputs: `[T, B, D_in]`, whose first D are the current values of the forecast columns.
          state: the encoder's state.
          controls: controls of the encoder's steps.
          training: whether to apply dropout.
          seed: int32 `[2]`, the seed of dropout.
        """
        return self._forecast(inputs, state, controls, None, training, seed)

    def loss(
        self, window: Window, state: State, *, training: bool = False, seed: Seed | None = None
    ) -> tuple[WindowLoss, State]:
        """Computes loss and metrics of the forecasts against `window.targets`, and the state.

        In training with teacher forcing, the decoder reads targets `[T, B, steps * D]`.
        """
        truth = window.targets if training and self._forcing else None
        outputs, state = self._forecast(
            window.inputs, state, window.controls, truth, training, seed
        )
        return window_loss(self._loss, self._metrics, outputs, window), state

    def _forecast(
        self,
        inputs: tf.Tensor,
        state: State,
        controls: Controls,
        truth: tf.Tensor | None,
        training: bool,
        seed: Seed | None,
    ) -> tuple[tf.Tensor, State]:
        """Forecasts as `__call__`; the decoder reads `truth [T, B, steps * D]`, if given."""
        before, after = self._rates if training else (0.0, 0.0)
        seeds = [None] * 4 if seed is None else split_seed(seed, 4)
        x = dropout(inputs[..., self._bypass :], before, seeds[0], per=self._dropout_per)
        h, state = self.encoder(x, state, controls, training=training, seed=seeds[1])
        h = dropout(h, after, seeds[2], per=self._dropout_per)
        steps, rows = h.shape[:2]
        now = tf.reshape(inputs[..., : self._output_size], [-1, self._output_size])
        if truth is not None:
            truth = tf.reshape(truth, [-1, self._steps, self._output_size]) - now[:, None]
        path = self._decode(tf.reshape(h, [-1, h.shape[-1]]), truth, training, seeds[3])
        outputs = path + now[:, None]
        return tf.reshape(outputs, [steps, rows, -1]), state

    def _decode(
        self, h: tf.Tensor, truth: tf.Tensor | None, training: bool, seed: Seed | None
    ) -> tf.Tensor:
        """Decodes `h [N, H_e]` to differences from the current values, `[N, steps, D]`."""
        begun = tf.nest.pack_sequence_as(
            self.decoder.initial_state(1), [tf.tanh(bridge(h)) for bridge in self.bridges]
        )
        rows = h.shape[0]
        steps = tf.range(1, self._steps + 1)[:, None]
        given: Nest = {"step": tf.broadcast_to(steps, [self._steps, rows])}
        if truth is not None:
            of_forcing = None if seed is None else fold_in(seed, tf.constant(0))
            forced = keep_mask([self._steps, rows, 1], 1.0 - self._forcing, of_forcing)
            given |= {"truth": tf.transpose(truth, [1, 0, 2]), "forced": forced}

        def cell(given: Nest, carried: Nest) -> tuple[tf.Tensor, Nest]:
            value, state = carried
            own = None if seed is None else fold_in(seed, given["step"][0])
            outputs, state = self.decoder(value[None], state, training=training, seed=own)
            value += self.readout(outputs[0])
            following = value
            if truth is not None:
                following = tf.where(given["forced"], given["truth"], value)
            return value, (following, state)

        nothing = tf.zeros([rows, self._output_size], h.dtype)
        path, _ = unroll(cell, given, (nothing, begun))
        return tf.transpose(path, [1, 0, 2])
