"""What every experiment does around its training: settings, log folder, result, mistakes."""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import pathlib
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import tensorflow as tf
from absl import app, flags, logging

import tbptt
from tbptt import checks

# The flags made here are those of the experiment, and its --help shows them.
flags.disclaim_key_flags()

SETTINGS_FILE = "settings.json"
RESULT_FILE = "result.json"

Settings = TypeVar("Settings")


class UsageError(Exception):
    """A mistake that the user can put right: told in one line, without a traceback."""


@contextlib.contextmanager
def usage_errors() -> Iterator[None]:
    """Takes what is raised inside for a mistake in the settings."""
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        logging.debug("%s", traceback.format_exc())  # seen with --verbosity=1
        raise UsageError(str(error)) from None


def launch(main: Callable[[], None]) -> None:
    """Parses the flags and runs `main`; a user's mistake ends with one line and status 1."""

    def run(argv: list[str]) -> None:
        logging.use_absl_handler()
        if len(argv) > 1:
            sys.exit(f"error: {argv[1]!r} is not a flag; write --name=value, or see --help.")
        try:
            main()
        except (UsageError, tbptt.NonFiniteError, tbptt.ContinuityError) as error:
            sys.exit(f"error: {error}")

    logging.set_verbosity(logging.INFO)
    app.run(run)


def setting(default: Any, text: str, *, least: float | None = None) -> Any:
    """A field of a settings class that `define_flags` makes a flag of, `least` its bound."""
    return dataclasses.field(default=default, metadata={"help": text, "least": least})


def define_flags(settings: type, presets: Mapping[str, Mapping[str, Any]]) -> None:
    """One flag a field, and `--config` for the preset that the others override."""
    first = next(iter(presets))
    flags.DEFINE_enum("config", first, list(presets), "What to start from; flags override it.")
    flags.DEFINE_string("logdir", None, "Folder of the run. Default: below runs/, by settings.")
    define = {
        int: flags.DEFINE_integer,
        float: flags.DEFINE_float,
        bool: flags.DEFINE_bool,
    }
    for field in dataclasses.fields(settings):
        if "help" in field.metadata:
            default = presets[first].get(field.name, field.default)
            text = f"{field.metadata['help']} ({first}: {default!r})"
            define.get(type(field.default), flags.DEFINE_string)(field.name, None, text)


def settings_from_flags(
    settings: type[Settings], presets: Mapping[str, Mapping[str, Any]]
) -> Settings:
    """The preset, overridden by the flags that were given."""
    given = flags.FLAGS.flag_values_dict()
    values = {"config": given["config"], **presets[given["config"]]}
    for field in dataclasses.fields(settings):  # type: ignore[arg-type]
        if "help" in field.metadata and given[field.name] is not None:
            values[field.name] = given[field.name]
    made = settings(**values)
    for field in dataclasses.fields(settings):  # type: ignore[arg-type]
        if field.metadata.get("least") is not None:
            checks.check_at_least(field.name, getattr(made, field.name), field.metadata["least"])
    return made


def profile_range(text: str | None) -> tuple[int, int] | None:
    """`"100:150"` as two numbers; None if nothing is to be traced."""
    if text is None:
        return None
    first, colon, last = text.partition(":")
    if not (colon and first.isdecimal() and last.isdecimal() and int(first) < int(last)):
        raise ValueError(
            f"--profile_windows ({text!r}) must be first:last, two window numbers, the first "
            "below the last, as 100:150."
        )
    return int(first), int(last)


def digest(settings: Any) -> str:
    """Sixteen hexadecimal digits: the same settings, the same digits."""
    text = json.dumps(dataclasses.asdict(settings), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def claim_logdir(name: str, settings: Any) -> pathlib.Path:
    """The folder of this run, with the settings in it.

    A run of the same settings that is there already is moved aside, never overwritten.

    Raises:
      UsageError: the folder holds a run with other settings.
    """
    given = flags.FLAGS.logdir
    logdir = pathlib.Path(given or f"runs/{name}/{settings.config}-{digest(settings)[:8]}")
    values = dataclasses.asdict(settings)
    with usage_errors():
        if (logdir / SETTINGS_FILE).exists():
            _refuse_other_settings(logdir, values)
            aside = next(
                path
                for number in range(1, sys.maxsize)
                if not (path := logdir.with_name(f"{logdir.name}.{number}")).exists()
            )
            logdir.rename(aside)
            logging.info("The earlier run of these settings is now in %s.", aside)
        logdir.mkdir(parents=True, exist_ok=True)
        (logdir / SETTINGS_FILE).write_text(json.dumps(values, indent=2) + "\n", "utf-8")
    return logdir


def _refuse_other_settings(logdir: pathlib.Path, values: Mapping[str, Any]) -> None:
    try:
        there = json.loads((logdir / SETTINGS_FILE).read_text("utf-8"))
    except json.JSONDecodeError:
        raise UsageError(
            f"{SETTINGS_FILE} in {str(logdir)!r} cannot be read, so whose run that is cannot be "
            "told. Choose another --logdir."
        ) from None
    other = [
        f"{name}={there.get(name)!r} there, {values.get(name)!r} here"
        for name in sorted({*there, *values})
        if there.get(name) != values.get(name)
    ]
    if other:
        raise UsageError(
            f"{str(logdir)!r} holds a run with other settings ({'; '.join(other)}). Choose "
            "another --logdir, or give the same settings."
        )


def announce(logdir: pathlib.Path, model: tf.Module, windows: int) -> None:
    """Says what is about to happen, and where."""
    size = sum(int(tf.size(parameter)) for parameter in model.trainable_variables)
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    logging.info(
        "%s parameters, %s windows, on %s; the run is in %s. The first call compiles.",
        f"{size:,}",
        f"{windows:,}",
        devices[0].name.removeprefix("/device:"),
        logdir,
    )


def write_result(logdir: pathlib.Path, settings: Any, **result: Any) -> None:
    """Writes `result.json`, whole or not at all, and the same line on standard output."""
    for name, value in result.items():
        if isinstance(value, float) and not math.isfinite(value):
            result[name] = None  # JSON has no infinity
    line = json.dumps({**result, "settings": digest(settings)}, allow_nan=False)
    beside = logdir / f"{RESULT_FILE}.partial"
    beside.write_text(line + "\n", "utf-8")
    os.replace(beside, logdir / RESULT_FILE)
    print(line, flush=True)
