"""`SequenceModel`: maps feature vectors to outputs, for any loss and metrics of one's own."""

from collections.abc import Mapping

import tensorflow as tf

from tbptt import checks
from tbptt.layers.dense import Dense
from tbptt.layers.dropout import check_dropout, dropout
from tbptt.layers.initializers import Initializer
from tbptt.losses import window_loss
from tbptt.rebuild import rebuildable
from tbptt.seeds import split_seed
from tbptt.types import Controls, Core, Loss, Seed, State, Window, WindowLoss


@rebuildable
class SequenceModel(tf.Module):
    """Maps sequences of feature vectors to the outputs that its loss takes: core and readout.

        h, state = core(dropout(inputs), state)
        outputs = dropout(h) @ w + b

    Attributes:
      core: the recurrent layers.
      readout: a `Dense`, `[H, output_size]` and `[output_size]`.

    Example:
      >>> seeds = split_seed(make_seed(0), 2)
      >>> model = SequenceModel(LSTM(3, 8, seed=seeds[0]), 2, squared_error, seed=seeds[1])
      >>> outputs, state = model(tf.zeros([5, 4, 3]), model.initial_state(4))
      >>> outputs.shape.as_list()
      [5, 4, 2]
    """

    def __init__(
        self,
        core: Core,
        output_size: int,
        loss: Loss,
        *,
        seed: Seed,
        metrics: Mapping[str, Loss] | None = None,
        dropout_rate: float = 0.0,
        dropout_per: str = "step",
        input_dropout_rate: float = 0.0,
        bypass: int = 0,
        initializer: Initializer | None = None,
        compute_dtype: tf.DType | None = None,
        dtype: tf.DType = tf.float32,
        name: str | None = None,
    ) -> None:
        """Creates a readout for the given core.

        Args:
          core: `[T, B, D] -> [T, B, H]`.
          output_size: the size of the last axis of the outputs.
          loss: `(outputs, targets) -> [T, B]`, as `squared_error`.
          seed: int32 `[2]`, the seed of the readout's initial weights.
          metrics: further metrics by name, functions like `loss`.
          dropout_rate: rate of dropout on the core's outputs, in training.
          dropout_per: `step` or `window`, see `dropout`.
          input_dropout_rate: rate of dropout on the inputs, in training.
          bypass: the number of first inputs that the core, whose input size is D - bypass, does not
            read; the first output_size of them are added to the outputs. So a forecast starts from
            the current values, and the core reads the other inputs, as their changes.
          initializer, compute_dtype, dtype: for the readout, see `Dense`.
          name: the name of the module.
        """
        super().__init__(name=name)
        check_dropout(dropout_rate, dropout_per)
        check_dropout(input_dropout_rate, dropout_per)
        self._rates = (input_dropout_rate, dropout_rate)
        self._dropout_per = dropout_per
        if bypass and bypass < output_size:
            raise ValueError(
                f"bypass ({bypass}) must be 0 or at least output_size ({output_size}): every "
                "output has an input of its own that is added to it."
            )
        self._bypass = bypass
        self._loss, self._metrics = loss, dict(metrics or {})
        self.core = core
        self.readout = Dense(
            core.output_size,
            output_size,
            seed=seed,
            initializer=initializer,
            compute_dtype=compute_dtype,
            dtype=dtype,
        )

    def initial_state(self, rows: int) -> State:
        """Returns the core's state of `rows` rows that have read nothing."""
        checks.check_at_least("rows", rows, 1)
        return self.core.initial_state(rows)

    def __call__(
        self,
        inputs: tf.Tensor,
        state: State,
        controls: Controls = Controls(),
        *,
        training: bool = False,
        seed: Seed | None = None,
    ) -> tuple[tf.Tensor, State]:
        """Computes outputs `[T, B, output_size]` for `inputs [T, B, D]`, and the new state."""
        before, after = self._rates if training else (0.0, 0.0)
        seeds = [None] * 3 if seed is None else split_seed(seed, 3)
        x = dropout(inputs[..., self._bypass :], before, seeds[0], per=self._dropout_per)
        h, state = self.core(x, state, controls, training=training, seed=seeds[1])
        outputs = self.readout(dropout(h, after, seeds[2], per=self._dropout_per))
        if self._bypass:
            outputs += inputs[..., : outputs.shape[-1]]
        return outputs, state

    def loss(
        self, window: Window, state: State, *, training: bool = False, seed: Seed | None = None
    ) -> tuple[WindowLoss, State]:
        """Computes loss and metrics of the outputs against `window.targets`, and the new state."""
        outputs, state = self(window.inputs, state, window.controls, training=training, seed=seed)
        return window_loss(self._loss, self._metrics, outputs, window), state
