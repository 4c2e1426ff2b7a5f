"""`fit`: training with validation, best or averaged parameters, checkpoints and summaries."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf
from absl import logging

import tbptt
from tbptt.checkpoint import Checkpoint, CheckpointError, Checkpoints, snapshot, write_parameters
from tbptt.checkpoint.save import Save
from tbptt.distribution import Replicas
from tbptt.experiment.errors import UnfinishedError, UsageError, output, usage_errors
from tbptt.experiment.folder import Claim, Result, write_result
from tbptt.experiment.model_files import PARAMETERS_FILE, write_model_files
from tbptt.experiment.settings import Settings, decisive, profile_range, save_interval
from tbptt.optimizers.schedules import Schedule
from tbptt.streams.fingerprint import fingerprint
from tbptt.summaries import tags
from tbptt.summaries.actions import TrainingSummaries
from tbptt.training.actions import Action
from tbptt.training.signals import StopOnSignal
from tbptt.types import Stream


@dataclasses.dataclass(frozen=True)
class Fit:
    """The result of `fit` when all windows are trained; the model has the best parameters.

    Attributes:
      writer: writes the run's summaries, still open.
      valid: the validation figure of the best parameters; NaN without a validation.
      windows: the number of windows trained.
      tokens_per_second: steps of all rows in a second, without validations and checkpoints.
    """

    writer: tbptt.SummaryWriter
    valid: float
    windows: int
    tokens_per_second: float


@dataclasses.dataclass
class BestFile:
    """Writes the best parameters to a file; a failure is logged, and tried again later.

    Attributes:
      path: an `.npz` file; None: this process writes nothing.
      best: holds the parameters.
      due: whether the file must be written, because `best` has newer parameters.
    """

    path: pathlib.Path | None
    best: tbptt.KeepBest
    due: bool = True

    def write(self) -> None:
        """Writes the file if it is due; an error of the disk is logged."""
        parameters = self.best.parameters()
        if self.path is None or not self.due or not parameters:
            return
        try:
            write_parameters(self.path, parameters)
            self.due = False
        except OSError as error:
            logging.error(
                "The best parameters could not be written to %s: %s. The run goes on, with them in "
                "its checkpoints, and tries again.",
                self.path,
                error.strerror,
            )


def fit(
    settings: Settings,
    claim: Claim,
    trainer: tbptt.Trainer,
    feed: Any,
    schedule: Schedule | None,
    *,
    windows: int,
    metric: str,
    validate: Callable[[], tuple[tbptt.Evaluation, float]] | None,
    eval_every: int = 0,
    average: tbptt.Average | None = None,
    histogram_every: int = 0,
    parts: Mapping[str, snapshot.Part] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
) -> Fit:
    """Trains with validation, checkpoints and TensorBoard; `train_and_test` calls it, and tests.

    It continues from the newest checkpoint in the folder; shows progress; validates; keeps the
    parameters with the lowest figure; writes checkpoints and TensorBoard summaries; and saves the
    run when the process is told to stop.

    Args:
      settings: the run's settings, to show and to compare with those of its checkpoints.
      claim: the run's folder, locked.
      trainer: the model and its optimizer.
      feed: the windows to train on, see `open_feed`.
      schedule: the learning rate's schedule, to show in TensorBoard; None: it is not shown.
      windows: the number of windows to train, from the beginning of the run.
      metric: the name of the validation figure.
      validate: returns the loss and the figure, of which lower is better. None: the last
        parameters are kept.
      eval_every: windows between validations; 0: once an epoch.
      average: the trainer's average of its parameters; once begun, it is validated and kept.
      histogram_every: windows between histograms; 0: none.
      parts: further objects whose state is saved in checkpoints, by name.
      preprocessing: how the data are prepared, for `tbptt.serving.load`, see `train_and_test`.

    Raises:
      UsageError: no checkpoint in the folder can be used, or it is of other data.
      UnfinishedError: --max_minutes are over; the run is saved.
      NonFiniteError: no validation was finite.
    """
    logdir, options, stream = claim.folder, claim.options, feed.stream
    replicas = claim.replicas
    replicas.any(True)  # waits until all processes have started and the chief has the lock
    best = tbptt.KeepBest(trainer.model)
    parts = {"best": best, **(parts or {})}
    facts = {"settings": decisive(settings), "data": claim.data}
    checkpoints, start = resume_in_folder(claim, trainer, stream, parts, facts)
    if claim.writes:
        write_model_files(logdir, trainer.model, preprocessing or {})
    best_file = BestFile(logdir / PARAMETERS_FILE if claim.writes else None, best)
    first = trainer.windows_seen
    announce(logdir, trainer.model, first, windows, replicas)
    writer = tbptt.SummaryWriter(logdir if claim.writes else None, first_step=first)
    if not first:
        writer.table(0, tags.SETTINGS, dataclasses.asdict(settings))
        names = {
            tags.RESULT_VALID: f"valid {metric}",
            tags.RESULT_TEST: f"test {metric}",
        }
        writer.hparams(dataclasses.asdict(settings), names)
    new_steps = stream.truncation.nominal_length
    progress = tbptt.Progress(stream.rows * new_steps)
    training_summaries = TrainingSummaries(
        writer, trainer, schedule, progress, stream.windows_per_epoch
    )

    def evaluate(judge: Callable[[], tuple[tbptt.Evaluation, float]], report: tbptt.Report) -> None:
        with average.applied() if average else contextlib.nullcontext():
            evaluation, figure = judge()
            better = best.offer(figure, report.step)
            best_file.due = best_file.due or better
            best_file.write()
        means = {"loss": evaluation.loss, **evaluation.metrics}
        writer.scalars(report.step, {tags.valid(name): mean for name, mean in means.items()})
        progress.note(
            f"window {report.step}: valid {metric} {figure:.4f}"
            + (", the best so far" if better else f"; best was {best.figure:.4f}")
        )

    due: list[Action] = [tbptt.EveryCall(progress), tbptt.EveryCall(training_summaries.scalars)]
    if validate is not None:
        every = eval_every or stream.windows_per_epoch
        due.append(tbptt.Every(every, functools.partial(evaluate, validate)))
    if histogram_every:
        due.append(tbptt.Every(histogram_every, training_summaries.histograms))
    profile = profile_range(options.profile_windows)
    if profile and claim.writes:
        due.append(tbptt.EveryCall(tbptt.Profile(str(logdir), *profile)))

    def take(run_state: tbptt.RunState) -> Checkpoint:
        best_file.write()
        writer.flush()  # a resumed run does not write events up to here again
        return snapshot.snapshot(trainer, run_state, parts=parts, facts=facts)

    save_windows, save_minutes = save_interval(options.save_every)
    save = Save(checkpoints, take, windows=save_windows, minutes=save_minutes, agree=replicas.any)
    due += [tbptt.EveryCall(lambda _: claim.check()), tbptt.EveryCall(save)]  # save comes last
    with StopOnSignal() as stopped:
        run_state = tbptt.train(
            trainer, feed, start, windows=windows, actions=due,
            stop=lambda: replicas.any(stopped() or options.seconds_left() < 0)[0],
        )  # fmt: skip
        finished = trainer.windows_seen == windows
        if not finished:
            save.save(run_state)
        error = save.close()
    if not finished:
        (unsaved,) = replicas.any(error is not None)  # no process ends before the chief has written
        writer.close()
        stopped.exit()
        why = "another worker was told to stop"
        if options.seconds_left() < 0:
            why = f"{options.max_minutes:g} minutes are over"
        where = f"at window {trainer.windows_seen} of {windows}, because {why}"
        if unsaved:
            raise UsageError(
                f"The run stopped {where}, and could not be saved ({error or 'by the chief'}). "
                "Make room on the disk; the same command goes on from the last checkpoint."
            )
        raise UnfinishedError(f"The run is saved {where}. The same command goes on.")
    if validate is None:
        best.offer(0.0, windows)
        best_file.due = True
    elif not best.parameters():
        raise tbptt.NonFiniteError(
            f"No validation of {windows} windows was finite, so there are no best parameters to "
            f"test. Begin anew with a lower --learning_rate, in another --logdir than {logdir}."
        )
    best_file.write()
    best.apply()
    return Fit(
        writer, math.nan if validate is None else best.figure, windows, progress.tokens_per_second
    )


def resume_in_folder(
    claim: Claim,
    trainer: tbptt.Trainer,
    stream: Stream,
    parts: Mapping[str, snapshot.Part],
    facts: Mapping[str, Any],
) -> tuple[Checkpoints, tbptt.RunState]:
    """Resumes from the newest checkpoint in the run's folder, after checks of workers and data.

    Returns:
      The folder's checkpoints, and the run state to train from.

    Raises:
      UsageError: none of them can be used, it is of other data, or the workers find different ones.
    """
    start = tbptt.RunState(trainer.initial_loop_state(stream.rows))
    with usage_errors():
        checkpoints = Checkpoints(
            claim.folder / "checkpoints",
            keep=claim.options.keep_checkpoints,
            read_only=not claim.writes,
        )
        try:
            found = checkpoints.newest()
        except CheckpointError as error:
            raise UsageError(f"{error} Use --restart to begin anew.") from None
        window = 0 if found is None else found.step
        if claim.replicas.differ(window):  # checked before all processes restore together
            raise UsageError(
                f"The workers do not read the same checkpoint: this one finds window {window}. All "
                "of them need the same --logdir, on a disk that they share."
            )
        if found is not None:
            if found.facts.get("data", claim.data) != claim.data:
                raise UsageError(
                    f"The data have changed since the run in {str(claim.folder)!r} was begun, so "
                    "it cannot go on. Give the data as they were; or use --restart to begin anew, "
                    "or another --logdir."
                )
            start = snapshot.restore(found, trainer, start, parts=parts, facts=facts)
    return checkpoints, start


def data_of(*streams: Stream) -> str:
    """Returns sixteen hexadecimal digits of a hash of the streams that a run reads."""
    return hashlib.sha256(" ".join(map(fingerprint, streams)).encode()).hexdigest()[:16]


def finish(
    fitted: Fit,
    settings: Settings,
    claim: Claim,
    began: float,
    *,
    tested: tbptt.Evaluation,
    figure: float | None = None,
    show: Callable[[], None] = lambda: None,
    **result: Any,
) -> Result:
    """Writes the last summaries and `result.json`, prints the result and returns it.

    Args:
      fitted: the trained run, as `fit` returns it.
      settings, claim: the run's settings and its folder.
      began: the `time.monotonic()` from which its seconds are counted.
      tested: the evaluation of the test part: each metric of the model's own becomes `test_NAME`.
      figure: the figure on the test part. None: the loss.
      show: draws or prints more, once the result is on the disk.
      result: further entries of the result, as `metric`.
    """
    test = tested.loss if figure is None else figure
    figures = {tags.RESULT_VALID: fitted.valid, tags.RESULT_TEST: test}
    fitted.writer.scalars(
        fitted.windows, {tag: figure for tag, figure in figures.items() if math.isfinite(figure)}
    )
    written = write_result(
        settings,
        claim,
        valid=fitted.valid,
        test=test,
        windows=fitted.windows,
        seconds=round(time.monotonic() - began, 1),
        **{f"test_{name}": mean for name, mean in tested.metrics.items()},
        **result,
    )
    show()
    fitted.writer.close()
    if claim.writes:
        output.tell(json.dumps(written))
    return written


def announce(
    logdir: pathlib.Path, model: tf.Module, first: int, windows: int, replicas: Replicas
) -> None:
    """Logs the size of the model, the windows to train, the devices and the folder."""
    size = sum(int(tf.size(parameter)) for parameter in model.trainable_variables)
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    logging.info(
        "%s parameters, %s windows%s, on %s; the run is in %s. The first call compiles.",
        f"{size:,}",
        f"{windows:,}",
        f", going on from {first:,}" if first else "",
        devices[0].name.rpartition("device:")[2]
        + (f" and {replicas.count - 1} more" if replicas.count > 1 else ""),
        logdir,
    )
