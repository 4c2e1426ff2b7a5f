"""`Settings`, which decide the numbers that a run computes, and `Options`, which do not."""

import dataclasses
import hashlib
import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from tbptt import checks
from tbptt.distribution import STRATEGIES

IMPORTED = time.monotonic()
MOST_SEED = (1 << 31) - 1  # the largest seed that `make_seed` takes

UsedWith = Mapping[str, Sequence[Any] | None]
AnySettings = TypeVar("AnySettings", bound="Settings")


def setting(
    default: Any,
    text: str,
    *,
    least: float | None = None,
    most: float | None = None,
    below: float | None = None,
    choices: Sequence[str] | None = None,
    used_with: UsedWith | None = None,
    report: bool = False,
) -> Any:
    """Declares a field of `Settings`: its default, its flag's help and the values allowed.

    A value has the type of `default`; floats are finite, and integers fit into 64 bits.

    Args:
      default: the value unless another is given.
      text: the flag's help.
      least, most: the smallest and the largest value allowed.
      below: a bound that the value must stay below.
      choices: the strings allowed.
      used_with: says when this setting has an effect: the named setting must have one of the
        values listed, or, with None, any value but its default. Of several names one is enough. A
        value other than the default is refused if it has no effect.
      report: whether the setting changes only what is shown of a run. A run continues though
        such a setting is changed.

    Example:
      >>> @dataclasses.dataclass(frozen=True)
      ... class Mine(Settings):
      ...     readout: str = setting("full", "How words are scored.", choices=("full", "sampled"))
      ...     samples: int = setting(9, "Ids drawn.", least=1, used_with={"readout": ("sampled",)})
      >>> Mine(readout="sampled", samples=5).samples
      5
    """
    if choices is not None:
        text = f"{text.removesuffix('.')}: {', '.join(choices)}."
    metadata = dict(
        help=text, least=least, most=most, below=below, choices=choices,
        used_with=used_with or {}, report=report,
    )  # fmt: skip
    return dataclasses.field(default=default, metadata=metadata)


def check(settings: Any, preset: Mapping[str, Any] | None = None) -> None:
    """Raises ValueError if a value is not allowed, by itself or together with other settings.

    Args:
      settings: a dataclass with fields made by `setting`.
      preset: values that are accepted though they have no effect, as the defaults are.
    """
    fields = [field for field in dataclasses.fields(settings) if "help" in field.metadata]
    for field in fields:
        _check_alone(field.name, getattr(settings, field.name), type(field.default), field.metadata)
    for field in fields:
        value = getattr(settings, field.name)
        if value not in (field.default, (preset or {}).get(field.name, field.default)):
            _check_used(settings, field)


def _check_alone(name: str, value: Any, kind: Any, rule: Mapping[str, Any]) -> None:
    fits = isinstance(value, (int, float) if kind is float else kind)
    if not fits or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{name} ({value!r}) must be of type {kind.__name__}.")
    if kind is float and not math.isfinite(value):
        raise ValueError(f"{name} ({value}) must be finite.")
    if kind is int and not -(1 << 63) <= value < 1 << 63:
        raise ValueError(f"{name} ({value}) must fit into 64 bits.")
    if rule["least"] is not None:
        checks.check_at_least(name, value, rule["least"])
    if rule["most"] is not None and value > rule["most"]:
        raise ValueError(f"{name} ({value}) must be at most {rule['most']}.")
    if rule["below"] is not None and value >= rule["below"]:
        raise ValueError(f"{name} ({value}) must be below {rule['below']}.")
    if rule["choices"] is not None:
        checks.check_choice(name, value, rule["choices"])


def _check_used(settings: Any, field: dataclasses.Field) -> None:
    used_with: UsedWith = field.metadata["used_with"]
    if not used_with:
        return
    defaults = {other.name: other.default for other in dataclasses.fields(settings)}
    there, ways = [], []
    for name, values in used_with.items():
        value = getattr(settings, name)
        if value != defaults[name] if values is None else value in values:
            return
        there.append(f"without --{name}" if values is None else f"with {flag(name, value)}")
        ways += [f"--{name}"] if values is None else [flag(name, each) for each in values]
    raise ValueError(
        f"--{field.name} has no effect {' and '.join(there)}. Leave it out, or use "
        f"{' or '.join(ways)}."
    )


def flag(name: str, value: Any) -> str:
    """Returns a setting as on the command line: `--tied`, `--notied` or `--rows=3`."""
    if isinstance(value, bool):
        return f"--{'' if value else 'no'}{name}"
    return f"--{name}={value}"


@dataclasses.dataclass(frozen=True)
class Settings:
    """The base class of an experiment's settings, which decide the numbers that it computes.

    A subclass is a frozen dataclass with a field made by `setting` for every flag. Making one
    raises ValueError if a value is not allowed, by itself or together with others; rules of the
    subclass's own go into its method `check_together`.

    Attributes:
      experiment: the experiment's name. A subclass that does not give one has the name of the
        file that defines it, without `.py`.
      presets: by name, settings that differ from the defaults; the first is used unless
        --config names another. What a preset says is accepted though another setting leaves it
        without effect.
    """

    experiment: ClassVar[str] = ""
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"default": {}}

    config: str = "default"
    seed: int = setting(
        0, "Seed of first weights, order of the data and dropout.", least=0, most=MOST_SEED
    )

    def __init_subclass__(cls) -> None:
        if "experiment" not in cls.__dict__:
            cls.experiment = file_stem(cls.__module__)

    def __post_init__(self) -> None:
        check(self, self.presets.get(self.config))
        self.check_together()

    def check_together(self) -> None:
        """Raises ValueError if the values of several settings contradict each other."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of a run that do not change its numbers: folder, checkpoints, time limit, devices.

    With dropout, the number of devices does change them: every replica draws its own masks.

    Attributes:
      began: `time.monotonic()` from which `max_minutes` counts: the start of the process if the
        options came from a command line, and else the time at which they were made.
    """

    logdir: str = setting("", "Folder of the run; empty: below runs/, named by the settings.")
    restart: bool = setting(False, "Start anew; the run in the folder is moved aside.")
    save_every: str = setting("10m", "How often to save: minutes, as 10m, or windows, as 500.")
    keep_checkpoints: int = setting(3, "Number of checkpoints to keep, the newest.", least=1)
    max_minutes: float = setting(
        0.0,
        "Minutes from the start of the process after which the run is saved and ends with "
        "status 75; 0: no limit.",
        least=0,
    )
    strategy: str = setting(
        "auto", "Devices that train; auto is chosen by the environment", choices=STRATEGIES
    )
    logical_devices: int = setting(
        0,
        "Logical devices to divide this CPU into, to try --strategy=mirrored; 0: undivided.",
        least=0,
        most=64,
    )
    profile_windows: str = setting("", "Windows to profile, first:last, as 100:150; empty: none.")
    began: float = dataclasses.field(default_factory=time.monotonic, compare=False)

    def __post_init__(self) -> None:
        check(self)
        profile_range(self.profile_windows)
        save_interval(self.save_every)

    @property
    def folder(self) -> pathlib.Path:
        """The run's folder, `logdir` as a path."""
        return pathlib.Path(self.logdir)

    def seconds_left(self) -> float:
        """Returns the seconds until `max_minutes` are over; infinity if there is no such limit."""
        if not self.max_minutes:
            return math.inf
        return self.began + 60 * self.max_minutes - time.monotonic()


def file_stem(module: str) -> str:
    """Returns the name of a module's file without `.py`; of a notebook, which has none, `main`."""
    if module != "__main__":
        return module.rpartition(".")[2]
    return pathlib.Path(getattr(sys.modules[module], "__file__", None) or "main").stem


def process_began() -> float:
    """Returns the `time.monotonic()` at which this process started.

    If the system does not say, the time at which this module was imported is returned.
    """
    try:
        fields = pathlib.Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        began = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # seconds since the system started
        up = float(pathlib.Path("/proc/uptime").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return IMPORTED
    return time.monotonic() - max(0.0, up - began)


def profile_range(text: str) -> tuple[int, int] | None:
    """Parses `--profile_windows`: returns `"100:150"` as (100, 150), and empty text as None."""
    if not text:
        return None
    first, colon, last = text.partition(":")
    if not (colon and first.isdecimal() and last.isdecimal() and int(first) < int(last)):
        raise ValueError(
            f"--profile_windows ({text!r}) must be first:last, two window numbers, the first "
            "below the last, as 100:150."
        )
    return int(first), int(last)


def check_profile(options: Options, windows: int) -> None:
    """Raises ValueError if the windows to trace go beyond the last window of the run."""
    profile = profile_range(options.profile_windows)
    if profile and profile[1] > windows:
        raise ValueError(
            f"--profile_windows ({options.profile_windows}) must end by window {windows}, the last "
            "of the run."
        )


def save_interval(text: str) -> tuple[int, float]:
    """Parses `--save_every` as (windows, minutes): `"500"` is (500, 0.0), `"10m"` is (0, 10.0)."""
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


def decisive(settings: Settings) -> dict[str, Any]:
    """Returns the settings that must be the same to resume a run: all not marked `report`."""
    report = {f.name for f in dataclasses.fields(settings) if f.metadata.get("report")}
    return {n: value for n, value in dataclasses.asdict(settings).items() if n not in report}


def digest(settings: Settings) -> str:
    """Returns sixteen hexadecimal digits of a hash of the decisive settings."""
    text = json.dumps(decisive(settings), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
