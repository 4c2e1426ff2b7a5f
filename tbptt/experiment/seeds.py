"""Runs several seeds, each in a folder of its own, and reports mean and spread of the results."""

import dataclasses
import json
import re
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from absl import logging

from tbptt.experiment.devices import replicas_of
from tbptt.experiment.errors import UnfinishedError, UsageError, output, usage_errors
from tbptt.experiment.folder import (
    RESTARTED_FILE,
    SETTINGS_FILE,
    FinishedError,
    Result,
    begun_by_restart,
    make_folder,
    mark_restarted,
    move_aside,
    refuse_foreign,
    write_file,
)
from tbptt.experiment.lock import Lock
from tbptt.experiment.settings import MOST_SEED, AnySettings, Options

SEEDS_FILE = "seeds.json"


def run_seeds(
    main: Callable[[AnySettings, Options], Result],
    settings: AnySettings,
    options: Options,
    count: int,
) -> list[Result]:
    """Runs `main` with `count` seeds, from `settings.seed` on, and returns their results.

    With several seeds, each run has a folder `seed-N` inside `options.logdir`; mean and spread of
    the results are written to `seeds.json` there, and printed. --restart then restarts all seeds.

    Args:
      main: trains with one seed and returns its result.
      settings: the settings of the first seed.
      options: the options of all seeds together.
      count: the number of seeds.

    Raises:
      UsageError: the folder holds a run of one seed, or the last seed is too large.
      UnfinishedError: --max_minutes are over before all seeds are finished.
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
    replicas.any(True)  # waits until the chief has moved earlier runs aside
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
    """Creates the folder of several seeds; with --restart, earlier runs are first moved aside.

    They are moved once: runs that --restart began continue until all seeds are finished.
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
    """Returns the result of `main`; of a finished run, the result that it wrote."""
    try:
        return main(settings, options)
    except FinishedError as finished:
        logging.info("The run in %s is finished. --restart runs it again.", options.folder)
        output.tell(json.dumps(finished.result))
        return finished.result


def over_seeds(results: Sequence[Result]) -> Result:
    """Returns mean and sample standard deviation (`NAME_spread`) of every number in the results.

    Entries that are equal in all results appear once, unchanged.

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
