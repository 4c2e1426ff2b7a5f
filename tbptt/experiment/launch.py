"""`launch`: runs a script from the command line; turns users' mistakes into one line."""

import dataclasses
import signal
import sys
from collections.abc import Callable, Sequence

import tensorflow as tf
from absl import app, flags, logging

import tbptt
from tbptt import checks
from tbptt.experiment.errors import UnfinishedError, UsageError, output, usage_errors
from tbptt.experiment.flags import define_flags, settings_from_flags
from tbptt.experiment.folder import Result
from tbptt.experiment.seeds import run_seeds
from tbptt.experiment.settings import AnySettings, Options, digest
from tbptt.streams.files import DataError

flags.disclaim_key_flags()  # the flags defined below `launch` are the script's

# The errors that TensorFlow raises if another process of the run has ended.
LOST = (
    tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.FailedPreconditionError,
    tf.errors.DeadlineExceededError, tf.errors.CancelledError,
)  # fmt: skip
INTERRUPTED = 128 + signal.SIGINT
UNFINISHED = 75  # exit status, as of sysexits.h: try again


def launch(main: Callable[[AnySettings, Options], Result], settings: type[AnySettings]) -> None:
    """Runs a script: makes flags of `settings`, parses the command line, calls `main` once a seed.

    Runs are in `runs/NAME`, unless --logdir says otherwise; NAME is `settings.experiment`, which is
    the name of the script's file unless the class says otherwise. A user's mistake ends the process
    with one line and status 1; a run that is saved before its end, with status 75.

    Args:
      main: trains and returns the result that it wrote.
      settings: the class of its settings, a frozen dataclass.

    Example:
        if __name__ == "__main__":
            experiment.launch(main, Settings)
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # as it is while modules are imported
        signal.signal(signal.SIGINT, signal.default_int_handler)
    define_flags(settings)
    logging.set_verbosity(logging.INFO)
    app.run(lambda argv: run_flags(main, settings, argv[1:]))


def run_flags(
    main: Callable[[AnySettings, Options], Result],
    settings: type[AnySettings],
    rest: Sequence[str],
    values: flags.FlagValues = flags.FLAGS,
) -> None:
    """Runs `main` with the settings and options of parsed flags.

    Args:
      main, settings: see `launch`.
      rest: the arguments of the command line that are not flags.
      values: flags that `define_flags` has defined, parsed.

    Raises:
      SystemExit: the run did not finish: with a message, or with the status UNFINISHED.
    """
    logging.use_absl_handler()
    if rest:
        sys.exit(f"error: {rest[0]!r} is not a flag; write --name=value, or see --help.")
    try:
        with usage_errors():
            made, options = settings_from_flags(settings, values)
            count = values.seeds
            checks.check_at_least("seeds", count, 1)
        if not options.logdir:
            of_all = f"-{count}-seeds" if count > 1 else ""
            logdir = f"runs/{made.experiment}/{made.config}-{digest(made)[:8]}{of_all}"
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
