"""Command-line flags of settings and options: one flag a field."""

import dataclasses
from typing import Any

from absl import flags

from tbptt.experiment.settings import AnySettings, Options, Settings, process_began

flags.disclaim_key_flags()  # the flags defined here are the script's, and its --help shows them


def define_flags(settings: type[Settings], values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines a flag for every field of `settings` and of `Options`, `--config` and `--seeds`.

    Args:
      settings: the class, whose `presets` are the choices of `--config`.
      values: the flag values in which the flags are defined.
    """
    presets = settings.presets
    first = next(iter(presets))
    more: dict[str, Any] = {"flag_values": values}
    text = "The preset to start from; other flags override it."
    flags.DEFINE_enum("config", first, list(presets), text, **more)
    text = "Number of seeds to run, from --seed on; their mean and spread are reported."
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
    settings: type[AnySettings], values: flags.FlagValues = flags.FLAGS
) -> tuple[AnySettings, Options]:
    """Returns settings and options from parsed flags; flags override the preset of `--config`."""
    given = {name: flag for name, flag in values.flag_values_dict().items() if flag is not None}
    of_class = [
        {field.name: given[field.name] for field in dataclasses.fields(each) if field.name in given}
        for each in (settings, Options)
    ]
    made = settings(**{**settings.presets[given["config"]], **of_class[0]})
    return made, Options(**of_class[1], began=process_began())
