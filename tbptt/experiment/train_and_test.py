"""`train_and_test`: a whole run in one call, from a trainer and its streams to `result.json`."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import tbptt
from tbptt.distribution import Replicas
from tbptt.experiment.errors import usage_errors
from tbptt.experiment.fit import data_of, finish, fit
from tbptt.experiment.folder import Claim, Result
from tbptt.experiment.settings import Options, Settings, check_profile
from tbptt.optimizers.schedules import Schedule
from tbptt.types import Stream


def loss_of(evaluation: tbptt.Evaluation) -> float:
    """Returns the mean loss of an evaluation, in nats per target."""
    return evaluation.loss


def train_and_test(
    settings: Settings,
    options: Options,
    trainer: tbptt.Trainer,
    training: Stream,
    validation: Stream | None,
    test: Stream,
    *,
    windows: int,
    metric: str = "loss",
    figure: Callable[[tbptt.Evaluation], float] = loss_of,
    schedule: Schedule | None = None,
    eval_every: int = 0,
    windows_per_call: int = 50,
    result: Mapping[str, Any] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
) -> Result:
    """Trains, validates and tests a model in the folder of the run, and returns the result.

    The folder, `options.logdir`, is locked; an unfinished run in it goes on from its newest
    checkpoint, to the bit. Progress goes to the terminal, metrics to TensorBoard. The parameters
    with the lowest validation figure are kept, in `best_parameters.npz` too, and are tested. The
    result, which `result.json` holds, has `valid`, `test`, `metric`, `windows`, `seconds`,
    `steps_per_second`, `test_NAME` for each of the model's own metrics, and the entries of
    `result`.

    Args:
      settings: decide what is computed; an unfinished run with other settings is refused.
      options: the folder, how often it is saved, and when the run ends.
      trainer: trains on the devices of `replicas_of(options)`. The evaluations use its devices
        too, and XLA if it does.
      training: the stream that is trained on.
      validation: a stream that is evaluated from time to time. None: the last parameters are kept.
      test: a stream that is evaluated at the end. With `tail="pad"` every target is scored.
      windows: the number of windows to train, from the beginning of the run.
      metric: the figure's name.
      figure: reads the figure from an evaluation; lower is better.
      schedule: the learning rate by window, to be shown in TensorBoard; None: it is not shown.
      eval_every: windows between two validations; 0: once an epoch.
      windows_per_call: K: windows in one call of the compiled loop.
      result: further entries of the result, by name.
      preprocessing: how the data are prepared, by name, for whoever loads the run with
        `tbptt.serving.load`: a `Vocabulary`, a `Standardizer`, or lists and dictionaries of numbers
        and strings.

    Raises:
      UsageError: the folder is in use or holds another run, or the streams do not fit.
      FinishedError: the run is finished; `launch` then shows its result.
      UnfinishedError: `--max_minutes` are over; the run is saved.
    """
    began = time.monotonic()
    replicas = trainer.replicas
    with usage_errors():
        _check_devices(options, replicas)
        check_profile(options, windows)
        feed = tbptt.open_feed(training, windows_per_call, replicas=replicas)
        evaluate_test = _evaluator(trainer, test)
        streams, validate = [training, test], None
        if validation is not None:
            streams.append(validation)
            evaluate = _evaluator(trainer, validation)

            def validate() -> tuple[tbptt.Evaluation, float]:
                evaluation = evaluate()
                return evaluation, figure(evaluation)

        data = data_of(*streams)
    with Claim(settings, options, replicas, data=data) as claim:
        fitted = fit(
            settings, claim, trainer, feed, schedule,
            windows=windows, metric=metric, validate=validate, eval_every=eval_every,
            preprocessing=preprocessing,
        )  # fmt: skip
        tested = evaluate_test()
        return finish(
            fitted, settings, claim, began,
            tested=tested,
            figure=figure(tested),
            metric=metric,
            **(result or {}),
            steps_per_second=round(fitted.tokens_per_second),
        )  # fmt: skip


def _check_devices(options: Options, replicas: Replicas) -> None:
    asked = options.logical_devices or options.strategy not in ("auto", "one")
    if asked and replicas.strategy is None:
        raise ValueError(
            "--strategy and --logical_devices have no effect, because the trainer was made for one "
            "device. Make it with Trainer(..., replicas=experiment.replicas_of(options)), in "
            "replicas.scope()."
        )


def _evaluator(trainer: tbptt.Trainer, stream: Stream) -> tbptt.Evaluator:
    """Returns an evaluator on all replicas, or on each alone if they cannot share the rows."""
    return tbptt.Evaluator(
        trainer.model,
        stream,
        replicas=None if stream.rows % trainer.replicas.count else trainer.replicas,
        jit_compile=trainer.jit_compile,
    )
