"""Finds the runs that a command may take when none is named."""

import pathlib

RUNS = pathlib.Path("runs")


def newest_run(runs: pathlib.Path) -> pathlib.Path:
    """Returns the folder of the run below `runs` that was finished last.

    Raises:
      ValueError: there is none.
    """
    results = [path for path in runs.rglob("result.json") if path.is_file()]
    if not results:
        raise ValueError(
            f"There is no finished run below {str(runs)!r}. Train one (python -m "
            "experiments.language_model), or give its folder as --logdir."
        )
    return max(results, key=lambda path: path.stat().st_mtime).parent
