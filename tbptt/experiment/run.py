"""What every experiment does around its training: flags, seeds, mistakes."""

import dataclasses
import json
import pathlib
import re
import signal
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import tensorflow as tf
from absl import app, flags, logging

import tbptt
from tbptt import checks
from tbptt.distribution import Replicas
from tbptt.experiment.devices import replicas_of as replicas_of
from tbptt.experiment.errors import UnfinishedError as UnfinishedError
from tbptt.experiment.errors import UsageError as UsageError
from tbptt.experiment.errors import output as output
from tbptt.experiment.errors import usage_errors as usage_errors
from tbptt.experiment.folder import (
    RESTARTED_FILE,
    FinishedError,
    begun_by_restart,
    make_folder,
    mark_restarted,
    move_aside,
    refuse_foreign,
)
from tbptt.experiment.folder import RESULT_FILE as RESULT_FILE
from tbptt.experiment.folder import SETTINGS_FILE as SETTINGS_FILE
from tbptt.experiment.folder import Claim as Claim
from tbptt.experiment.folder import Result as Result
from tbptt.experiment.folder import read_object as read_object
from tbptt.experiment.folder import write_file as write_file
from tbptt.experiment.folder import write_result as write_result
from tbptt.experiment.lock import Lock
from tbptt.experiment.settings import MOST_SEED, digest, process_began
from tbptt.experiment.settings import Options as Options
from tbptt.experiment.settings import Settings as Settings
from tbptt.experiment.settings import setting as setting
from tbptt.streams.files import DataError

# The flags made here are those of the experiment, and its --help shows them.
flags.disclaim_key_flags()

SEEDS_FILE = "seeds.json"
# What TensorFlow raises where another process of the run has ended.
LOST = (
    tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.FailedPreconditionError,
    tf.errors.DeadlineExceededError, tf.errors.CancelledError,
)  # fmt: skip
INTERRUPTED = 128 + signal.SIGINT
UNFINISHED = 75  # exit status, as of sysexits.h: try again

Presets = Mapping[str, Mapping[str, Any]]
AnySettings = TypeVar("AnySettings", bound=Settings)


def launch(
    name: str,
    main: Callable[[AnySettings, Options], Result],
    settings: type[AnySettings],
    presets: Presets,
) -> None:
    """Makes flags of `settings`, parses them and runs `main`, once a seed.

    A user's mistake ends with one line and status 1.

    Args:
      name: of the experiment: its runs are in `runs/name`, unless --logdir says otherwise.
      main: trains and returns the result that it wrote.
      settings: the class of its settings.
      presets: by name, what differs from the defaults of `settings`; the first is the default.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # as it is while modules are imported
        signal.signal(signal.SIGINT, signal.default_int_handler)
    define_flags(settings, presets)
    logging.set_verbosity(logging.INFO)
    app.run(lambda argv: run_flags(name, main, settings, presets, argv[1:]))


def run_flags(
    name: str,
    main: Callable[[AnySettings, Options], Result],
    settings: type[AnySettings],
    presets: Presets,
    rest: Sequence[str],
    values: flags.FlagValues = flags.FLAGS,
) -> None:
    """Runs `main` as the flags say; arguments are those of `launch`.

    Args:
      rest: what stands on the command line beside flags.
      values: flags that are defined by `define_flags`, and parsed.

    Raises:
      SystemExit: the run did not come to its end: with a message, or with the status UNFINISHED.
    """
    logging.use_absl_handler()
    if rest:
        sys.exit(f"error: {rest[0]!r} is not a flag; write --name=value, or see --help.")
    try:
        with usage_errors():
            made, options = settings_from_flags(settings, presets, values)
            count = values.seeds
            checks.check_at_least("seeds", count, 1)
        if not options.logdir:
            of_all = f"-{count}-seeds" if count > 1 else ""
            logdir = f"runs/{name}/{made.config}-{digest(made)[:8]}{of_all}"
            options = dataclasses.replace(options, logdir=logdir)
        output.error = None
        run_seeds(main, made, options, count)
        if output.error is not None:
            raise UsageError(
                f"Standard output cannot be written ({output.error.strerror}), but the run is "
                f"finished: its result is in {str(options.folder)!r}."
            )
    except UnfinishedError as unfinished:
        logging.info("%s", unfinished)
        sys.exit(UNFINISHED)
    except (UsageError, DataError, tbptt.NonFiniteError, tbptt.ContinuityError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        logging.info("Interrupted.")
        sys.exit(INTERRUPTED)
    except (MemoryError, tf.errors.ResourceExhaustedError) as error:
        reason = getattr(error, "message", str(error)).splitlines()[0]
        sys.exit(
            f"error: there is not enough memory ({reason}). Use smaller sizes, as of --hidden, "
            "--rows and --window_length."
        )
    except LOST as error:
        sys.exit(
            f"error: another worker is gone ({error.message.splitlines()[0]}). Start all of "
            "them again; they go on from the last checkpoint."
        )


def run_seeds(
    main: Callable[[AnySettings, Options], Result],
    settings: AnySettings,
    options: Options,
    count: int,
) -> list[Result]:
    """Runs `main` with so many seeds, from that of the settings on; returns their results.

    Of several, each has its folder in that of the options, and mean and spread are written there,
    and on standard output. --restart is then of all of them together.
    """
    if count == 1:
        return [_result_of(main, settings, options)]
    if settings.seed + count - 1 > MOST_SEED:
        raise UsageError(
            f"--seed={settings.seed} and --seeds={count} go beyond the largest seed, {MOST_SEED}. "
            "Use a smaller --seed."
        )
    replicas = replicas_of(options, getattr(settings, "rows", 0))
    if replicas.is_chief:
        with usage_errors():
            _claim_seeds(options)
    replicas.any(True)  # the chief has moved aside what was there
    results: list[Result] = []
    for seed in range(settings.seed, settings.seed + count):
        if options.seconds_left() <= 0:
            raise UnfinishedError(
                f"{options.max_minutes:g} minutes are over; {len(results)} of {count} seeds "
                "are through. The same command goes on."
            )
        logdir = str(options.folder / f"seed-{seed}")
        one = dataclasses.replace(options, logdir=logdir, restart=False)
        results.append(_result_of(main, dataclasses.replace(settings, seed=seed), one))
    if replicas.is_chief:
        line = json.dumps(over_seeds(results), allow_nan=False)
        write_file(options.folder / SEEDS_FILE, line)
        output.tell(line)
    return results


def _claim_seeds(options: Options) -> None:
    """Makes the folder of several seeds, once what is there is moved aside for --restart.

    That is done once: what was begun by --restart goes on until all seeds are finished.
    """
    folder = options.folder
    if (folder / SETTINGS_FILE).exists():
        raise UsageError(
            f"{str(folder)!r} holds a run of one seed. Choose another --logdir for several."
        )
    refuse_foreign(folder, _of_seeds)
    begun = begun_by_restart(folder, (folder / SEEDS_FILE).exists())
    if options.restart and folder.exists() and not begun:
        for path in folder.glob("seed-*"):
            Lock(path).release()  # or another process runs one of them
        move_aside(folder)
    make_folder(folder)
    if options.restart:
        mark_restarted(folder)


def _of_seeds(name: str) -> bool:
    return (
        name in (SEEDS_FILE, RESTARTED_FILE) or re.fullmatch(r"seed-\d+(\.\d+)?", name) is not None
    )


def _result_of(
    main: Callable[[AnySettings, Options], Result], settings: AnySettings, options: Options
) -> Result:
    """What `main` returns; of a run that is finished, what it has returned."""
    try:
        return main(settings, options)
    except FinishedError as finished:
        logging.info("The run in %s is finished. --restart runs it again.", options.folder)
        output.tell(json.dumps(finished.result))
        return finished.result


def over_seeds(results: Sequence[Result]) -> Result:
    """Mean and sample standard deviation of every figure that all have; what is alike, once.

    Example:
      >>> over_seeds([{"test": 1.0, "metric": "mse"}, {"test": 3.0, "metric": "mse"}])
      {'test': 2.0, 'test_spread': 1.4142135623730951, 'metric': 'mse', 'seeds': 2}
    """
    summary: Result = {}
    for name in results[0]:
        values: list[Any] = [result.get(name) for result in results]
        if all(value == values[0] for value in values):
            summary[name] = values[0]
        elif all(isinstance(value, int | float) for value in values):
            summary[name] = statistics.mean(values)
            summary[f"{name}_spread"] = statistics.stdev(values)
    return {**summary, "seeds": len(results)}


def define_flags(
    settings: type[Settings], presets: Presets, values: flags.FlagValues = flags.FLAGS
) -> None:
    """Defines one flag a field, and `--config` for the preset that the others override."""
    first = next(iter(presets))
    more: dict[str, Any] = {"flag_values": values}
    text = "What to start from; flags override it."
    flags.DEFINE_enum("config", first, list(presets), text, **more)
    text = "Runs, of so many seeds from --seed on: mean and spread."
    flags.DEFINE_integer("seeds", 1, text, **more)
    define = {
        int: flags.DEFINE_integer,
        float: flags.DEFINE_float,
        bool: flags.DEFINE_bool,
    }
    for field in (*dataclasses.fields(Options), *dataclasses.fields(settings)):
        if "help" in field.metadata:
            default = presets[first].get(field.name, field.default)
            text = f"{field.metadata['help']} ({first}: {default!r})"
            define.get(type(field.default), flags.DEFINE_string)(field.name, None, text, **more)


def settings_from_flags(
    settings: type[AnySettings], presets: Presets, values: flags.FlagValues = flags.FLAGS
) -> tuple[AnySettings, Options]:
    """Returns the preset, overridden by the flags that were given; and the options."""
    given = {name: flag for name, flag in values.flag_values_dict().items() if flag is not None}
    of_class = [
        {field.name: given[field.name] for field in dataclasses.fields(each) if field.name in given}
        for each in (settings, Options)
    ]
    made = settings(**{**presets[given["config"]], **of_class[0]})
    return made, Options(**of_class[1], began=process_began())


def announce(
    logdir: pathlib.Path, model: tf.Module, first: int, windows: int, replicas: Replicas
) -> None:
    """Says what is about to happen, and where."""
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
