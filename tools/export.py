"""Exports the model of a finished run for other programs, and measures how far exports drift.

    python -m tools.export --logdir=runs/mine --to=exported
    python -m tools.export --logdir=runs/mine --to=exports --format=all
    python -m tools.export --logdir=runs/mine --to=exports --check --text=FILE

The first command writes a SavedModel with signatures `initial_state(batch)` and
`step(inputs, reset, state...)` to a new folder. --format also names LiteRT models (`litert`,
`litert_float16`, `litert_int8`) and `stablehlo`, which have one step of --batch rows; `all` writes
each kind to a folder of its own in --to. Every export has a `description.json` of names, shapes,
types, vocabulary, figures and checksums. It is loaded again and compared with the model step by
step, and removed if it differs by more than its tolerance.

--check feeds a text, or a table with column names, to the model and to every export in --to, and
prints how far outputs and state differ after 10, 1,000 and 100,000 steps, and the loss of each.
Without --text and --table a language model reads what it writes itself, and others random numbers.
"""

import pathlib
import sys

from absl import app, flags

from tbptt.serving.exports import KINDS, Export, ExportError, open_export, write_export
from tbptt.serving.exports.data import Steps, example_steps, table_steps, text_steps
from tbptt.serving.exports.description import DESCRIPTION
from tbptt.serving.exports.drift import follow, table
from tbptt.serving.exports.original import Original, scores_of
from tbptt.serving.exports.program import Program
from tbptt.serving.load import LoadedRun, load

LOGDIR = flags.DEFINE_string("logdir", None, "Folder of a finished run.")
TO = flags.DEFINE_string("to", None, "New folder to write; with --check, the exports to read.")
FORMAT = flags.DEFINE_enum("format", "saved_model", [*KINDS, "all"], "What to write.")
BATCH = flags.DEFINE_integer(
    "batch", 1, "Rows of a step, for all formats but saved_model.", lower_bound=1
)
TOLERANCE = flags.DEFINE_float(
    "tolerance", None, "Largest difference from the model; none: that of the format."
)
CHECK = flags.DEFINE_bool("check", False, "Report how far the exports in --to drift.")
TEXT = flags.DEFINE_string("text", None, "Text to check on.")
TABLE = flags.DEFINE_string("table", None, "CSV file, with column names, to check on.")
STEPS = flags.DEFINE_integer(
    "steps", None, "Steps to check on; none: as many as the file has, or 1,000.", lower_bound=1
)


def export(run: LoadedRun, kind: str, folder: pathlib.Path) -> None:
    """Writes the exports that are asked for, and prints a line for each."""
    figures = {name: run.result[name] for name in run.result if name != "data"}
    for each in KINDS if kind == "all" else [kind]:
        written = write_export(
            run.model,
            folder / each if kind == "all" else folder,
            each,
            preprocessing=run.preprocessing,
            result=figures,
            batch=BATCH.value,
            tolerance=TOLERANCE.value,
        )
        print(line_of(written))


def line_of(written: Export) -> str:
    """Returns a line about an export: its size, and its differences from the model."""
    content, checked = written.description, written.description["checked"]
    size = sum(file["bytes"] for file in content["files"].values()) / 1e6
    loss = ""
    if checked["loss"] is not None and checked["original_loss"] is not None:
        more = checked["loss"] - checked["original_loss"]
        loss = f", loss {checked['original_loss']:.4f} {more:+.1e}"
    return (
        f"{written.folder}: {KINDS[written.kind]}; {size:,.2f} MB; after {checked['steps']} steps "
        f"outputs differ by {checked['outputs']:.1e}, state by {checked['state']:.1e}{loss}"
    )


def exports_in(folder: pathlib.Path) -> dict[str, Export]:
    """Opens the export in a folder, or all in folders of it.

    Raises:
      ExportError: there is none, or one is damaged.
    """
    inside = sorted(path.parent for path in folder.glob(f"*/{DESCRIPTION}"))
    if (folder / DESCRIPTION).is_file() or not inside:
        found = open_export(folder)
        return {found.kind: found}
    return {path.name: open_export(path) for path in inside}


def steps_of(run: LoadedRun, program: Program) -> Steps:
    """Returns the steps to check on, as the flags say."""
    if TEXT.value is not None:
        steps = text_steps(program, run.preprocessing, TEXT.value)
    elif TABLE.value is not None:
        steps = table_steps(program, run.preprocessing, TABLE.value)
    else:
        return example_steps(program, STEPS.value or 1000, rows=1, seed=0)
    return steps if STEPS.value is None else steps.part(slice(STEPS.value))


def check(run: LoadedRun, folder: pathlib.Path) -> None:
    """Prints how far the exports in a folder drift from the model of a run.

    Raises:
      ExportError: there is no export, or one is damaged or of another model.
    """
    program = Program(run.model)
    exports = exports_in(folder)
    for name, each in exports.items():
        if each.interface != program.interface:
            raise ExportError(
                f"{str(each.folder)!r} reads and returns {each.interface}, but the model of "
                f"{str(run.folder)!r} {program.interface}. Give the run that {name} is of."
            )
    runners = {name: each.runner for name, each in exports.items()}
    scores = scores_of(program)
    print(table(follow(Original(program), runners, steps_of(run, program), scores=scores)))


def main(argv: list[str]) -> None:
    """Exports a run, or checks its exports."""
    if len(argv) > 1 or LOGDIR.value is None or TO.value is None:
        sys.exit("error: give --logdir=RUN and --to=FOLDER.")
    if TEXT.value is not None and TABLE.value is not None:
        sys.exit("error: give --text or --table, not both.")
    if not CHECK.value and (TEXT.value or TABLE.value or STEPS.value):
        sys.exit("error: --text, --table and --steps are for --check.")
    try:
        run = load(LOGDIR.value)
        if CHECK.value:
            check(run, pathlib.Path(TO.value))
        else:
            export(run, FORMAT.value, pathlib.Path(TO.value))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    app.run(main)
