"""Models made of the layers: what a trainer, an evaluation and a sampler call."""

import tensorflow as tf

from tbptt import checks
from tbptt.layers.dense import Dense, linear
from tbptt.layers.dropout import check_dropout, dropout
from tbptt.layers.embedding import Embedding
from tbptt.layers.initializers import Initializer
from tbptt.seeds import split_seed
from tbptt.types import Core, Seed, State, Window


class LanguageModel(tf.Module):
    """Scores every next token: embedding, core, readout.

        x = dropout(embedding(ids))
        h, state = core(x, state)
        logits = dropout(h) @ w + b

    Attributes:
      embedding: `[V, D]`.
      core: the recurrent layers.
      readout: `[H, V]` and `[V]`; with `tied`, the embedding's table serves as `w`.

    Example:
      >>> seeds = split_seed(make_seed(0), 2)
      >>> model = LanguageModel(10, 4, LSTM(4, 8, seed=seeds[0]), seed=seeds[1])
      >>> window = Window(tf.zeros([5, 2], tf.int32), tf.zeros([5, 2], tf.int32))
      >>> logits, state = model(window, model.initial_state(2), training=False, seed=None)
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
        dropout_rate: float = 0.0,
        dropout_per: str = "step",
        initializer: Initializer | None = None,
        dtype: tf.DType = tf.float32,
        name: str | None = None,
    ) -> None:
        """Args:
        vocabulary_size: V.
        embedding_size: D, the core's input size.
        core: `[T, B, D] -> [T, B, H]`.
        seed: int32 `[2]`, of the first weights.
        tied: readout and embedding share one table; needs D = H.
        dropout_rate: of the embedded inputs and of the core's outputs, in training.
        dropout_per: `step` or `window`, see `dropout`.
        initializer: of embedding and readout. None: those of the layers.
        dtype: of the parameters and the logits.
        name: of the module.
        """
        super().__init__(name=name)
        check_dropout(dropout_rate, dropout_per)
        if tied and embedding_size != core.output_size:
            raise ValueError(
                f"Tied weights need embedding_size ({embedding_size}) equal to the core's "
                f"output size ({core.output_size}), because one table serves both. Use "
                f"embedding_size={core.output_size} or tied=False."
            )
        self._dropout_rate = dropout_rate
        self._dropout_per = dropout_per
        self._tied = tied
        first, last = split_seed(seed, 2)
        self.embedding = Embedding(
            vocabulary_size,
            embedding_size,
            seed=first,
            initializer=initializer,
            dtype=dtype,
        )
        self.core = core
        if tied:
            self.b = tf.Variable(tf.zeros([vocabulary_size], dtype), name="b")
        else:
            self.readout = Dense(
                core.output_size,
                vocabulary_size,
                seed=last,
                initializer=initializer,
                dtype=dtype,
            )

    def initial_state(self, batch_size: int) -> State:
        """The core's state of `batch_size` rows that have read nothing."""
        checks.check_at_least("batch_size", batch_size, 1)
        return self.core.initial_state(batch_size)

    def __call__(
        self,
        window: Window,
        state: State,
        *,
        training: bool = False,
        seed: Seed | None = None,
    ) -> tuple[tf.Tensor, State]:
        """Logits `[T, B, V]` of the token after each of `window.inputs [T, B]`, and the state."""
        rate = self._dropout_rate if training else 0.0
        seeds = [None] * 3 if seed is None else split_seed(seed, 3)
        x = dropout(self.embedding(window.inputs), rate, seeds[0], per=self._dropout_per)
        h, state = self.core(x, state, reset=window.reset, training=training, seed=seeds[1])
        h = dropout(h, rate, seeds[2], per=self._dropout_per)
        if self._tied:
            return linear(h, tf.transpose(self.embedding.table)) + self.b, state
        return self.readout(h), state
