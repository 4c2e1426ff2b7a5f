"""`RunningMean`: a core without parameters that returns the mean of its inputs since a reset."""

import tensorflow as tf

from tbptt.rebuild import rebuildable
from tbptt.types import Controls, Nest, Seed
from tbptt.unroll import unroll


@rebuildable
class RunningMean(tf.Module):
    """Returns at every step the mean of all inputs since the row's last reset; it is a `Core`.

        total, count = total + x, count + 1
        output = total / count

    Example:
      >>> mean = RunningMean(1)
      >>> outputs, state = mean(tf.constant([[[1.0]], [[3.0]]]), mean.initial_state(1))
      >>> outputs[:, 0, 0].numpy().tolist()
      [1.0, 2.0]
    """

    def __init__(self, output_size: int, *, name: str | None = None) -> None:
        """Creates the core for inputs of a size, which is that of the outputs too."""
        super().__init__(name=name)
        self.output_size = output_size

    def initial_state(self, rows: int) -> dict[str, tf.Tensor]:
        """Returns sum and count of rows that have read nothing: zeros."""
        return {"total": tf.zeros([rows, self.output_size]), "count": tf.zeros([rows, 1])}

    def __call__(
        self,
        inputs: tf.Tensor,
        state: dict[str, tf.Tensor],
        controls: Controls = Controls(),
        *,
        training: bool = False,
        seed: Seed | None = None,
    ) -> tuple[Nest, dict[str, tf.Tensor]]:
        """Computes the means `[T, B, D]` for `inputs [T, B, D]`, and the new sums and counts."""
        del training, seed  # nothing here is random

        def cell(
            x: tf.Tensor, state: dict[str, tf.Tensor]
        ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
            total, count = state["total"] + x, state["count"] + 1.0
            return total / count, {"total": total, "count": count}

        return unroll(
            cell, inputs, state, controls, initial_state=self.initial_state(inputs.shape[1])
        )
