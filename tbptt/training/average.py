"""Averages parameters over the last windows (ASGD), and decides when to start (NT-ASGD).

`Average` keeps the mean inside the compiled loop. `NonMonotonic` watches the validation loss; a
script calls `average.begin()` once `offer` returns True, as `experiments.language_model` does.
`tbptt.experiment.fit(average=)` validates, keeps and saves the averaged parameters.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tbptt import checks
from tbptt.types import Model


class Average(tf.Module):
    """The mean of a model's parameters over all windows since `begin`; for `Trainer(average=)`.

    Attributes:
      means: variables like `model.trainable_variables`.
      count: int64 variable, the number of windows averaged.
      begun: bool variable, whether averaging has begun.

    Example:
      >>> model = LanguageModel(5, 3, LSTM(3, 4, seed=make_seed(0)), seed=make_seed(1))
      >>> average = Average(model)
      >>> average.begin()
      >>> for value in (1.0, 3.0):
      ...     _ = model.readout.b.assign(tf.fill([5], value))
      ...     average.update(tf.constant(True))
      >>> with average.applied():
      ...     print(float(model.readout.b[0]))
      2.0
      >>> float(model.readout.b[0])
      3.0

    Reference: Polyak & Juditsky (1992), Acceleration of stochastic approximation by averaging.
    """

    def __init__(self, model: Model) -> None:
        super().__init__(name="average")
        self._model = model
        self.means = [
            tf.Variable(tf.zeros_like(parameter), trainable=False, name="mean")
            for parameter in model.trainable_variables
        ]
        self.count = tf.Variable(0, dtype=tf.int64, trainable=False, name="count")
        self.begun = tf.Variable(False, trainable=False, name="begun")

    def begin(self) -> None:
        """Starts averaging with the next window; does nothing if averaging has begun."""
        self.begun.assign(True)

    def update(self, accept: tf.Tensor) -> None:
        """Adds the parameters to the mean if averaging has begun and the bool `accept` is true."""
        counts = tf.convert_to_tensor(self.begun) & accept
        count = self.count + tf.cast(counts, tf.int64)
        self.count.assign(count)
        share = tf.where(counts, 1.0 / tf.cast(tf.maximum(count, 1), tf.float32), 0.0)
        for mean, parameter in zip(self.means, self._model.trainable_variables, strict=True):
            old = tf.convert_to_tensor(mean)
            mean.assign(old + (parameter - old) * tf.cast(share, old.dtype))

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Gives the model the averaged parameters inside a `with` block, if there are any."""
        if int(self.count) == 0:
            yield
            return
        parameters = self._model.trainable_variables
        values = [tf.identity(parameter) for parameter in parameters]
        try:
            for parameter, mean in zip(parameters, self.means, strict=True):
                parameter.assign(mean)
            yield
        finally:
            for parameter, value in zip(parameters, values, strict=True):
                parameter.assign(value)


class NonMonotonic:
    """Decides when averaging starts, as in NT-ASGD: when the validation loss stops falling.

    That is when a value is higher than the lowest of all values before the last `patience` ones.

    Example:
      >>> trigger = NonMonotonic(patience=2)
      >>> [trigger.offer(figure) for figure in (5.0, 4.0, 3.0, 4.5, 4.4)]
      [False, False, False, False, True]

    Reference: Merity, Keskar & Socher (2018), Regularizing and optimizing LSTM language models,
      algorithm 1 (NT-ASGD).
    """

    def __init__(self, patience: int = 5) -> None:
        checks.check_at_least("patience", patience, 1)
        self._patience = patience
        self._figures: list[float] = []
        self._stopped = False

    def offer(self, figure: float) -> bool:
        """Records the next value; returns whether the values have stopped falling, now or before.

        A value that is NaN counts as higher than all others.

        One that is NaN is above all others.
        """
        figure = math.inf if math.isnan(figure) else figure
        before = self._figures[: -self._patience]
        self._stopped = self._stopped or (bool(before) and figure > min(before))
        self._figures.append(figure)
        return self._stopped

    def snapshot(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Returns the recorded values, for a checkpoint."""
        return {}, {
            "figures": list(self._figures), "stopped": self._stopped, "patience": self._patience,
        }  # fmt: skip

    def restore(self, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
        """Restores what `snapshot` returned; raises ValueError if that has another patience."""
        del arrays
        patience = facts.get("patience", self._patience)  # early records have none
        if patience != self._patience:
            raise ValueError(f"patience {patience} in the record, {self._patience} here.")
        self._figures, self._stopped = list(facts["figures"]), facts["stopped"]
