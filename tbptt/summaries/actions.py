"""Callbacks that write training metrics and histograms to TensorBoard."""

import dataclasses
from typing import Any

import tensorflow as tf

from tbptt.optimizers.schedules import Schedule
from tbptt.state import named_leaves
from tbptt.summaries import tags
from tbptt.summaries.writer import SummaryWriter
from tbptt.training.actions import Progress, Report
from tbptt.training.trainer import Trainer
from tbptt.variables import named_parameters


@dataclasses.dataclass(frozen=True)
class TrainingSummaries:
    """Writes training metrics and histograms to TensorBoard; its methods are callbacks."""

    writer: SummaryWriter
    trainer: Trainer
    schedule: Schedule | None
    progress: Progress
    windows_per_epoch: int

    def scalars(self, report: Report) -> None:
        """Writes the metrics of the last call to TensorBoard."""
        speed = self.progress.tokens_per_second
        if speed:  # 0 after the first call, which compiles
            self.writer.scalars(report.step, {tags.TOKENS_PER_SECOND: speed})
        means = {tags.train(name): mean for name, mean in report.metrics.means.items()}
        if self.schedule is not None:
            rate = float(self.schedule(report.step))
            self.writer.scalars(report.step, {tags.LEARNING_RATE: rate})
        self.writer.scalars(report.step, {
            **means,
            tags.GRAD_NORM_MEAN: report.metrics.grad_norm_mean,
            tags.GRAD_NORM_MAX: report.metrics.grad_norm_max,
            tags.WINDOWS_SKIPPED: report.metrics.skipped,
            tags.HIDDEN_RMS: state_rms(report.state),
            tags.EPOCH: report.step / self.windows_per_epoch,
        })  # fmt: skip

    def histograms(self, report: Report) -> None:
        """Writes histograms of parameters and state to TensorBoard."""
        parameters = named_parameters(self.trainer.model)
        self.writer.histograms(report.step, tags.PARAMETERS, parameters)
        self.writer.histograms(report.step, tags.STATE, named_leaves(report.state))


def state_rms(state: Any) -> float:
    """Returns the root mean square over all leaves of a recurrent state, without overflow."""
    leaves = [tf.cast(leaf, tf.float32) for leaf in tf.nest.flatten(state)]
    largest = tf.reduce_max([tf.reduce_max(tf.abs(leaf)) for leaf in leaves])
    scale = tf.where(largest > 0, largest, 1.0)
    squares = tf.add_n([tf.reduce_sum((leaf / scale) ** 2) for leaf in leaves])
    return float(scale * tf.sqrt(squares / sum(int(tf.size(leaf)) for leaf in leaves)))
