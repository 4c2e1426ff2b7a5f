"""What a run is told: settings, which decide what it computes, and options, which do not."""

import dataclasses
import hashlib
import json
import math
import pathlib
from typing import Any

from tbptt import checks


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
    """What does not change what a run computes; but every replica draws its own dropout."""

    logdir: str = setting("", "Folder of the run; empty: below runs/, named by the settings.")
    restart: bool = setting(False, "Start anew; what is in the folder is moved aside.")
    save_every: str = setting("10m", "Between checkpoints: minutes as 10m, or windows as 500.")
    keep_checkpoints: int = setting(3, "How many of the newest are kept.", least=1)
    max_minutes: float = setting(
        0.0, "Minutes after which the run is saved and ends, with status 75; 0: none.", least=0
    )
    strategy: str = setting(
        "auto", "Who trains: one, mirrored, multi_worker, tpu; auto: as the environment calls for."
    )
    logical_devices: int = setting(
        0, "Devices to make of this CPU, to try --strategy=mirrored; 0: as it is.", least=0
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
