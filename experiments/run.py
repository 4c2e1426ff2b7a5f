"""What every experiment does around its training: settings, log folder, result, mistakes."""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import math
import os
import pathlib
import socket
import statistics
import sys
import traceback
import weakref
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
LOCK_FILE = "lock"
UNFINISHED = 75  # exit status, as of sysexits.h: try again

Presets = Mapping[str, Mapping[str, Any]]


class UnfinishedError(Exception):
    """The time of this process was up: the run is saved, and the same command goes on."""


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


def check_bounds(settings: Any) -> None:
    """Raises ValueError if a value is below its bound."""
    for field in dataclasses.fields(settings):
        if field.metadata.get("least") is not None:
            checks.check_at_least(
                field.name, getattr(settings, field.name), field.metadata["least"]
            )


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides what a run computes. Raises ValueError if a value is below its bound."""

    config: str = "default"
    seed: int = setting(0, "Of all that is random: first weights, order, dropout.", least=0)

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclasses.dataclass(frozen=True)
class Options:
    """What does not change what a run computes."""

    logdir: str = setting("", "Folder of the run; empty: below runs/, named by the settings.")
    restart: bool = setting(False, "Start anew; what is in the folder is moved aside.")
    save_every: str = setting("10m", "Between checkpoints: minutes as 10m, or windows as 500.")
    keep_checkpoints: int = setting(3, "How many of the newest are kept.", least=1)
    max_minutes: float = setting(
        0.0, "Minutes after which the run is saved and ends, with status 75; 0: none.", least=0
    )
    profile_windows: str = setting("", "first:last window to trace, as 100:150; empty: none.")

    def __post_init__(self) -> None:
        check_bounds(self)
        profile_range(self.profile_windows)
        save_interval(self.save_every)

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
        except UnfinishedError as unfinished:
            logging.info("%s", unfinished)
            sys.exit(UNFINISHED)
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
        return [_result_of(main, settings, options)]
    results = []
    for seed in range(settings.seed, settings.seed + count):
        one = dataclasses.replace(options, logdir=str(options.folder / f"seed-{seed}"))
        results.append(_result_of(main, dataclasses.replace(settings, seed=seed), one))
    write_json(options.folder / SEEDS_FILE, over_seeds(results))
    return results


def _result_of(
    main: Callable[[AnySettings, Options], Result], settings: AnySettings, options: Options
) -> Result:
    """What `main` returns; of a run that is finished, what it has returned."""
    path = options.folder / RESULT_FILE
    if options.restart or not path.exists():
        return main(settings, options)
    _refuse_other_settings(options.folder, dataclasses.asdict(settings))
    logging.info("The run in %s is finished. --restart runs it again.", options.folder)
    line = path.read_text("utf-8").strip()
    print(line, flush=True)
    return json.loads(line)


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


def save_interval(text: str) -> tuple[int, float]:
    """`"500"` as (500 windows, 0 minutes), `"10m"` as (0, 10.0)."""
    number = text.removesuffix("m")
    try:
        found = (0, float(number)) if number != text else (int(number), 0.0)
    except ValueError:
        found = (0, 0.0)
    if not max(found) > 0 or math.isinf(max(found)):
        raise ValueError(
            f"--save_every ({text!r}) must be above 0: minutes, as 10m, or windows, as 500."
        )
    return found


def digest(settings: Any) -> str:
    """Sixteen hexadecimal digits: the same settings, the same digits."""
    text = json.dumps(dataclasses.asdict(settings), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Claim:
    """The folder of a run, this process's alone until the run is through or the process ends.

    Attributes:
      folder: holds the settings, and whatever an earlier process of this run has left.
      options: as given.
    """

    def __init__(self, settings: Settings, options: Options) -> None:
        """Raises UsageError: the folder holds another run, a finished one, or another process's."""
        self.options, self.folder = options, options.folder
        values = dataclasses.asdict(settings)
        with usage_errors():
            if (self.folder / SETTINGS_FILE).exists():
                _refuse_other_settings(self.folder, values)
                if options.restart:
                    Lock(self.folder).release()
                    _move_aside(self.folder)
                elif (self.folder / RESULT_FILE).exists():
                    raise UsageError(
                        f"The run in {str(self.folder)!r} is finished. Use --restart to run it "
                        "again; it is then moved aside."
                    )
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = Lock(self.folder)
            text = json.dumps(values, indent=2) + "\n"
            (self.folder / SETTINGS_FILE).write_text(text, "utf-8")

    def check(self) -> None:
        """Raises UsageError: the folder was removed or replaced under the run."""
        self._lock.check()

    def release(self) -> None:
        """The run is through."""
        self._lock.release()


class Lock:
    """A file that one process has locked; the lock ends with the process, however that ends.

    Attributes:
      release: a function: another process may have it.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        """Raises UsageError: another process has it (which)."""
        self._path = folder / LOCK_FILE
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        self.release = weakref.finalize(self, os.close, self._file)  # or with this object
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(self._file, 1000).decode("utf-8", "replace").strip()
            self.release()
            raise UsageError(
                f"{str(folder)!r} is in use by {owner or 'another process'}. Wait until it ends, "
                "or choose another --logdir."
            ) from None
        os.truncate(self._file, 0)
        os.write(self._file, f"process {os.getpid()} on {socket.gethostname()}\n".encode())

    def check(self) -> None:
        """Raises UsageError: the file is not there any more, or another one is."""
        try:
            fine = os.path.samestat(os.stat(self._path), os.fstat(self._file))
        except OSError:
            fine = False
        if not fine:
            raise UsageError(
                f"{str(self._path.parent)!r} was removed or replaced while the run wrote to it. "
                "Nothing more is written. Run the same command again to start anew."
            )


def _move_aside(folder: pathlib.Path) -> None:
    aside = next(
        path
        for number in range(1, sys.maxsize)
        if not (path := folder.with_name(f"{folder.name}.{number}")).exists()
    )
    folder.rename(aside)
    logging.info("The earlier run of these settings is now in %s.", aside)


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


def announce(logdir: pathlib.Path, model: tf.Module, first: int, windows: int) -> None:
    """Says what is about to happen, and where."""
    size = sum(int(tf.size(parameter)) for parameter in model.trainable_variables)
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    logging.info(
        "%s parameters, %s windows%s, on %s; the run is in %s. The first call compiles.",
        f"{size:,}",
        f"{windows:,}",
        f", going on from {first:,}" if first else "",
        devices[0].name.removeprefix("/device:"),
        logdir,
    )


def write_result(settings: Settings, claim: Claim, **result: Any) -> Result:
    """Writes `result.json` and the same line on standard output; returns it."""
    written = {**result, "settings": digest(settings)}
    for name, value in written.items():
        if isinstance(value, float) and not math.isfinite(value):
            written[name] = None  # JSON has no infinity
    write_json(claim.folder / RESULT_FILE, written)
    claim.release()
    return written


def write_json(path: pathlib.Path, content: Result) -> None:
    """Writes a file, and the same line on standard output."""
    line = json.dumps(content, allow_nan=False)
    write_file(path, line)
    print(line, flush=True)


def write_file(path: pathlib.Path, line: str) -> None:
    """Writes one line, whole or not at all."""
    beside = path.with_name(f"{path.name}.partial")
    beside.write_text(line + "\n", "utf-8")
    os.replace(beside, path)
