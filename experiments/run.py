"""What every experiment does around its training: settings, log folder, result, mistakes."""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import pathlib
import statistics
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import tensorflow as tf
from absl import app, flags, logging

import tbptt
from tbptt import checks

# The flags made here are those of the experiment, and its --help shows them.
flags.disclaim_key_flags()

SETTINGS_FILE = "settings.json"
RESULT_FILE = "result.json"
SEEDS_FILE = "seeds.json"

Presets = Mapping[str, Mapping[str, Any]]


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


def setting(default: Any, text: str, *, least: float | None = None) -> Any:
    """A field of a class of settings that is a flag too, `least` its bound."""
    return dataclasses.field(default=default, metadata={"help": text, "least": least})


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides what a run computes. Raises ValueError if a value is below its bound."""

    config: str = "default"
    seed: int = setting(0, "Of all that is random: first weights, order, dropout.", least=0)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if field.metadata.get("least") is not None:
                checks.check_at_least(
                    field.name, getattr(self, field.name), field.metadata["least"]
                )


@dataclasses.dataclass(frozen=True)
class Options:
    """What does not change what a run computes."""

    logdir: str = setting("", "Folder of the run; empty: below runs/, named by the settings.")
    profile_windows: str = setting("", "first:last window to trace, as 100:150; empty: none.")

    def __post_init__(self) -> None:
        profile_range(self.profile_windows)

    @property
    def folder(self) -> pathlib.Path:
        """Of the run."""
        return pathlib.Path(self.logdir)


AnySettings = TypeVar("AnySettings", bound=Settings)
Result = dict[str, Any]


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
    define_flags(settings, presets)

    def run(argv: list[str]) -> None:
        logging.use_absl_handler()
        if len(argv) > 1:
            sys.exit(f"error: {argv[1]!r} is not a flag; write --name=value, or see --help.")
        try:
            with usage_errors():
                made, options = settings_from_flags(settings, presets)
                count = flags.FLAGS.seeds
                checks.check_at_least("seeds", count, 1)
            if not options.logdir:
                of_all = f"-{count}-seeds" if count > 1 else ""
                logdir = f"runs/{name}/{made.config}-{digest(made)[:8]}{of_all}"
                options = dataclasses.replace(options, logdir=logdir)
            run_seeds(main, made, options, count)
        except (UsageError, tbptt.NonFiniteError, tbptt.ContinuityError) as error:
            sys.exit(f"error: {error}")

    logging.set_verbosity(logging.INFO)
    app.run(run)


def run_seeds(
    main: Callable[[AnySettings, Options], Result],
    settings: AnySettings,
    options: Options,
    count: int,
) -> list[Result]:
    """Runs `main` with so many seeds, from that of the settings on; returns their results.

    Of several, each has its folder in that of the options, and mean and spread are written there,
    and on standard output.
    """
    if count == 1:
        return [main(settings, options)]
    results = []
    for seed in range(settings.seed, settings.seed + count):
        one = dataclasses.replace(options, logdir=str(options.folder / f"seed-{seed}"))
        results.append(main(dataclasses.replace(settings, seed=seed), one))
    write_json(options.folder / SEEDS_FILE, over_seeds(results))
    return results


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


def define_flags(settings: type[Settings], presets: Presets) -> None:
    """One flag a field, and `--config` for the preset that the others override."""
    first = next(iter(presets))
    flags.DEFINE_enum("config", first, list(presets), "What to start from; flags override it.")
    flags.DEFINE_integer("seeds", 1, "Runs, of so many seeds from --seed on: mean and spread.")
    define = {
        int: flags.DEFINE_integer,
        float: flags.DEFINE_float,
        bool: flags.DEFINE_bool,
    }
    for field in (*dataclasses.fields(Options), *dataclasses.fields(settings)):
        if "help" in field.metadata:
            default = presets[first].get(field.name, field.default)
            text = f"{field.metadata['help']} ({first}: {default!r})"
            define.get(type(field.default), flags.DEFINE_string)(field.name, None, text)


def settings_from_flags(
    settings: type[AnySettings], presets: Presets
) -> tuple[AnySettings, Options]:
    """The preset, overridden by the flags that were given; and the options."""
    given = {
        name: flag for name, flag in flags.FLAGS.flag_values_dict().items() if flag is not None
    }
    of_class = [
        {field.name: given[field.name] for field in dataclasses.fields(each) if field.name in given}
        for each in (settings, Options)
    ]
    made = settings(**{**presets[given["config"]], **of_class[0]})
    return made, Options(**of_class[1])


def profile_range(text: str) -> tuple[int, int] | None:
    """`"100:150"` as two numbers; None if nothing is to be traced."""
    if not text:
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


def claim_logdir(settings: Settings, options: Options) -> None:
    """Makes the folder of this run, with the settings in it.

    A run of the same settings that is there already is moved aside, never overwritten.

    Raises:
      UsageError: the folder holds a run with other settings.
    """
    logdir, values = options.folder, dataclasses.asdict(settings)
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


def write_result(settings: Settings, options: Options, **result: Any) -> Result:
    """Writes `result.json` and the same line on standard output; returns it."""
    written = {**result, "settings": digest(settings)}
    for name, value in written.items():
        if isinstance(value, float) and not math.isfinite(value):
            written[name] = None  # JSON has no infinity
    write_json(options.folder / RESULT_FILE, written)
    return written


def write_json(path: pathlib.Path, content: Result) -> None:
    """Writes a file, whole or not at all, and the same line on standard output."""
    line = json.dumps(content, allow_nan=False)
    beside = path.with_name(f"{path.name}.partial")
    beside.write_text(line + "\n", "utf-8")
    os.replace(beside, path)
    print(line, flush=True)
