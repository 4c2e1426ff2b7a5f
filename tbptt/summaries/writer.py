"""`SummaryWriter`: writes a run's TensorBoard event file, and goes on if the disk is full."""

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow as tf
from absl import logging
from tensorboard.compat.proto import event_pb2
from tensorboard.plugins.hparams import summary_v2 as hparams
from tensorboard.summary.writer.event_file_writer import EventFileWriter


class SummaryWriter:
    """Writes one run's TensorBoard event file; every method takes the step, in windows.

    If it cannot be written, as on a full disk, the error is logged, events are lost meanwhile, and
    `flush` begins another file, which TensorBoard reads after the first.
    """

    def __init__(self, logdir: str | os.PathLike[str] | None, *, first_step: int = 0) -> None:
        """Opens the event file in the run's folder.

        Args:
          logdir: the run's folder. None: nothing is written, as by all workers but the chief.
          first_step: the step at which the run resumes. TensorBoard is told to drop events that an
            earlier process wrote for later steps, which no checkpoint holds.
        """
        self._logdir = logdir
        self._failed = False
        self._writer = tf.summary.create_noop_writer()
        if logdir is None:
            return
        # The first marker of a run says that it began, each other one that it was restarted.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        step = first_step + 1 if first_step else 0
        with self._logged():
            marker = EventFileWriter(str(logdir))
            marker.add_event(event_pb2.Event(wall_time=time.time(), step=step, session_log=start))
            marker.close()
            self._writer = tf.summary.create_file_writer(str(logdir))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one number for each tag."""
        with self._logged(), self._writer.as_default(step):
            for tag, value in values.items():
                tf.summary.scalar(tag, value)

    def text(self, step: int, tag: str, text: str) -> None:
        """Writes a text in a fixed-width font, because Markdown would remove its indentation."""
        lines = "\n".join("    " + line for line in text.split("\n"))
        with self._logged(), self._writer.as_default(step):
            tf.summary.text(tag, lines)

    def table(self, step: int, tag: str, rows: Mapping[str, Any]) -> None:
        """Writes names and values as a table."""
        lines = ["| name | value |", "|---|---|"]
        lines += [f"| {name} | {value} |" for name, value in rows.items()]
        with self._logged(), self._writer.as_default(step):
            tf.summary.text(tag, "\n".join(lines))

    def picture(self, step: int, tag: str, png: bytes) -> None:
        """Writes an image, given the content of a PNG file."""
        with self._logged(), self._writer.as_default(step):
            tf.summary.image(tag, tf.image.decode_png(png, channels=3)[None])

    def histograms(self, step: int, prefix: str, values: Mapping[str, tf.Tensor]) -> None:
        """Writes histograms of tensors, with the tags `prefix/name`."""
        with self._logged(), self._writer.as_default(step):
            for name, value in values.items():
                tf.summary.histogram(f"{prefix}/{name}", value)

    def hparams(self, settings: Mapping[str, Any], metrics: Mapping[str, str]) -> None:
        """Writes the run's row in the HParams tab.

        Args:
          settings: hyperparameters; values other than numbers and bools are shown as text.
          metrics: displayed names of scalars by their tag.
        """
        plain = {
            name: value if isinstance(value, bool | int | float) else str(value)
            for name, value in settings.items()
        }
        with self._logged(), self._writer.as_default(0):
            hparams.hparams_config(
                hparams=[hparams.HParam(name) for name in plain],
                metrics=[hparams.Metric(tag, display_name=name) for tag, name in metrics.items()],
            )
            hparams.hparams(plain)

    def flush(self) -> None:
        """Writes buffered events to the file, or after a failure to a new one."""
        with self._logged():
            if self._failed:
                self._writer = tf.summary.create_file_writer(str(self._logdir))
                self._failed = False
            self._writer.flush()

    def close(self) -> None:
        """Flushes the event file and ends it."""
        with self._logged():
            self._writer.close()

    @contextlib.contextmanager
    def _logged(self) -> Iterator[None]:
        """Logs an error of the file, once until it can be written again, and goes on."""
        try:
            yield
        except (OSError, tf.errors.OpError) as error:
            self._writer = tf.summary.create_noop_writer()
            if not self._failed:
                reason = getattr(error, "message", str(error)).partition("}} ")
                logging.error(
                    "TensorBoard's events could not be written to %s: %s. The run goes on.",
                    self._logdir,
                    (reason[2] or reason[0]).splitlines()[0],
                )
            self._failed = True
