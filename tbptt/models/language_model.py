"""`LanguageModel`: predicts the next token; embedding, recurrent layers, readout, weight tying."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tbptt import checks
from tbptt.layers.dropout import check_dropout, drop, dropout
from tbptt.layers.embedding import Embedding
from tbptt.layers.initializers import Initializer
from tbptt.readouts.full import FullSoftmax
from tbptt.rebuild import rebuildable
from tbptt.seeds import fold_in, split_seed
from tbptt.types import Controls, Core, Readout, Seed, State, Window, WindowLoss


@rebuildable
class LanguageModel(tf.Module):
    """Predicts the next token at every step: embedding, recurrent layers and readout.

        x = dropout(embedding(ids))
        h, state = core(x, state)
        logits = dropout(h) @ w + b

    Attributes:
      embedding: an `Embedding`, `[V, D]`.
      core: the recurrent layers.
      readout: the readout that was given, or a `FullSoftmax`, whose `w` is the transpose of the
        embedding's table with `tied`.

    Example:
      >>> seeds = split_seed(make_seed(0), 2)
      >>> model = LanguageModel(10, 4, LSTM(4, 8, seed=seeds[0]), seed=seeds[1])
      >>> logits, state = model(tf.zeros([5, 2], tf.int32), model.initial_state(2))
      >>> logits.shape.as_list()
      [5, 2, 10]

    Reference: Mikolov et al. (2010), Recurrent neural network based language model; tied
      weights are of Press & Wolf (2017), Using the output embedding to improve language
      models; where dropout acts is Zaremba et al. (2014).
    """

    def __init__(
        self,
        vocabulary_size: int,
        embedding_size: int,
        core: Core,
        *,
        seed: Seed,
        tied: bool = False,
        readout: Readout | Callable[[tf.Variable], Readout] | None = None,
        dropout_rate: float = 0.0,
        dropout_per: str = "step",
        embedding_dropout: float = 0.0,
        activation_penalty: float = 0.0,
        slowness_penalty: float = 0.0,
        initializer: Initializer | None = None,
        compute_dtype: tf.DType | None = None,
        dtype: tf.DType = tf.float32,
        name: str | None = None,
    ) -> None:
        """Creates the embedding, and a readout unless one is given.

        Args:
          vocabulary_size: V.
          embedding_size: D, the core's input size.
          core: `[T, B, D] -> [T, B, H]`.
          seed: int32 `[2]`, the seed of the initial weights.
          tied: whether readout and embedding share one table (weight tying); needs D = H.
          readout: a `Readout`, as one for a large vocabulary; with `tied`, a function that makes
            it of the embedding's table `[V, D]`. None: `FullSoftmax`.
          dropout_rate: rate of dropout on embedded inputs and the core's outputs, in training.
          dropout_per: `step` or `window`, see `dropout`.
          embedding_dropout: rate at which whole ids are dropped from the inputs of a window, in
            training (Gal & Ghahramani, 2016).
          activation_penalty, slowness_penalty: factors of penalties in training: on the mean
            square over units of what the readout reads, and of the change of the core's output
            from the step before (AR and TAR; Merity, McCann & Socher, 2017, Revisiting activation
            regularization for language RNNs).
          initializer: the initializer of embedding and readout. None: those of the layers.
          compute_dtype: the type of the readout's product, see `precision.product`, unless
            `readout` is given. None: `dtype`.
          dtype: the type of the parameters and the logits.
          name: the name of the module.
        """
        super().__init__(name=name)
        check_dropout(dropout_rate, dropout_per)
        check_dropout(embedding_dropout, dropout_per)
        checks.check_at_least("activation_penalty", activation_penalty, 0.0)
        checks.check_at_least("slowness_penalty", slowness_penalty, 0.0)
        self._embedding_dropout = embedding_dropout
        self._penalties = (activation_penalty, slowness_penalty)
        if tied and embedding_size != core.output_size:
            raise ValueError(
                f"Tied weights need embedding_size ({embedding_size}) equal to the core's "
                f"output size ({core.output_size}), because one table serves both. Use "
                f"embedding_size={core.output_size} or tied=False."
            )
        self._dropout_rate = dropout_rate
        self._dropout_per = dropout_per
        first, last = split_seed(seed, 2)
        self.embedding = Embedding(
            vocabulary_size,
            embedding_size,
            seed=first,
            initializer=initializer,
            dtype=dtype,
        )
        self.core = core
        if readout is None:
            readout = FullSoftmax(
                core.output_size,
                vocabulary_size,
                seed=last,
                table=self.embedding.table if tied else None,
                initializer=initializer,
                compute_dtype=compute_dtype,
                dtype=dtype,
            )
        elif tied:
            readout = self._tied(readout)
        self.readout = self._fitting(readout)

    @property
    def vocabulary_size(self) -> int:
        """The number of ids, V: inputs are from 0 to V - 1."""
        return int(self.embedding.table.shape[0])

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
        """Computes logits `[T, B, V]` of the next tokens after `inputs [T, B]`, and the state."""
        _, h, state = self._hidden(inputs, state, controls, training, seed)
        return self.readout.logits(h), state

    def loss(
        self,
        window: Window,
        state: State,
        *,
        training: bool = False,
        seed: Seed | None = None,
    ) -> tuple[WindowLoss, State]:
        """Computes the negative log probability of `window.targets [T, B]`, and the state.

        It is the cross entropy of the logits, though a readout for a large vocabulary does not
        store them all. In training a `SampledSoftmax` estimates it, and penalties are returned too.
        """
        raw, h, state = self._hidden(window.inputs, state, window.controls, training, seed)
        seed = None if seed is None else fold_in(seed, tf.constant(3))  # 0 to 2, 4: _hidden
        loss = self.readout.loss(h, window.targets, training=training, seed=seed)
        penalty = None
        if training and any(self._penalties):
            penalty = self._penalty(raw, h, window.controls.reset)
        return WindowLoss(loss, penalty=penalty), state

    def _penalty(self, raw: tf.Tensor, h: tf.Tensor, reset: tf.Tensor | None) -> tf.Tensor:
        """Computes the penalties of every step, `[T, B]`; a step after a reset has no change."""
        activation, slowness = self._penalties
        penalty = tf.zeros([], h.dtype)
        if activation:
            penalty += activation * tf.reduce_mean(h * h, axis=-1)
        if slowness:
            before = raw[:-1]
            if reset is not None:  # selects first, so that no gradient flows through a reset
                before = tf.where(reset[1:, :, None], raw[1:], before)
            change = tf.reduce_mean(tf.math.squared_difference(raw[1:], before), axis=-1)
            penalty += slowness * tf.pad(change, [[1, 0], [0, 0]])
        return penalty

    def _hidden(
        self,
        inputs: tf.Tensor,
        state: State,
        controls: Controls,
        training: bool,
        seed: Seed | None,
    ) -> tuple[tf.Tensor, tf.Tensor, State]:
        """Computes the core's outputs, the same after dropout, `[T, B, H]` each, and the state."""
        rate = self._dropout_rate if training else 0.0
        seeds = [None] * 3 if seed is None else split_seed(seed, 3)
        x = self.embedding(inputs)
        if training and self._embedding_dropout:
            ones = tf.ones([self.embedding.table.shape[0]], x.dtype)
            of_ids = None if seed is None else fold_in(seed, tf.constant(4))
            kept = drop(ones, self._embedding_dropout, of_ids)
            x *= tf.gather(kept, inputs)[..., None]
        x = dropout(x, rate, seeds[0], per=self._dropout_per)
        raw, state = self.core(x, state, controls, training=training, seed=seeds[1])
        return raw, dropout(raw, rate, seeds[2], per=self._dropout_per), state

    def _tied(self, make: Readout | Callable[[tf.Variable], Readout]) -> Readout:
        """Makes a readout of the embedding's table; raises ValueError unless it uses that table."""
        table = self.embedding.table
        if hasattr(make, "loss") or not callable(make):
            raise ValueError(
                f"tied=True needs a function that makes the readout of the embedding's table, but "
                f"got {type(make).__name__}. Use readout=lambda table: ChunkedSoftmax(..., "
                "table=table), or tied=False."
            )
        made = make(table)
        if getattr(made, "table", None) is not table:
            raise ValueError(
                f"tied=True, but {type(made).__name__} does not use the embedding's table. "
                "Hand it on, as ChunkedSoftmax(..., table=table), or use tied=False."
            )
        return made

    def _fitting(self, readout: Any) -> Readout:
        """Returns the readout; raises an error unless it fits the core and the vocabulary."""
        if not hasattr(readout, "loss"):
            raise TypeError(
                f"readout is {type(readout).__name__}, which has no logits and loss. Pass a "
                "FullSoftmax, ChunkedSoftmax, AdaptiveSoftmax or SampledSoftmax; a function only "
                "with tied=True."
            )
        sizes = (readout.hidden_size, readout.vocabulary_size)
        needed = (self.core.output_size, self.embedding.table.shape[0])
        if sizes != needed:
            raise ValueError(
                f"The readout is for hidden_size={sizes[0]}, vocabulary_size={sizes[1]}, but "
                f"the core's output size is {needed[0]} and the vocabulary size {needed[1]}. "
                "Make it of these."
            )
        return readout
