"""Steps to try a model and its exports on: of a text, of a table, or made up."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tbptt.serving.exports.errors import ExportError
from tbptt.serving.exports.interface import Arrays
from tbptt.serving.exports.original import Original
from tbptt.serving.exports.program import Program
from tbptt.streams.corpus import Vocabulary
from tbptt.streams.files import read_bytes, read_text
from tbptt.streams.series import SeriesStream, Standardizer
from tbptt.streams.tables import read_series
from tbptt.types import Cursor

LENGTH = 256  # steps of a window, in which a table is read


class Steps(NamedTuple):
    """Steps to run a model on: inputs of B rows, with resets and targets.

    Attributes:
      inputs: `[T, B, ...]` by name.
      reset: `[T, B]`: rows that start anew. None: none.
      targets: `[T, B, ...]`. None: there are none, and so no loss.
      weight: `[T, B]`: what a step counts in the loss. None: 1.
    """

    inputs: Arrays
    reset: Any = None
    targets: Any = None
    weight: Any = None

    def part(self, steps: slice) -> "Steps":
        """Returns some of the steps."""
        return tf.nest.map_structure(lambda x: None if x is None else x[steps], self)

    def filled(self, steps: int, rows: int) -> "Steps":
        """Returns the steps with `reset` and `weight`."""
        never = np.zeros([steps, rows], bool) if self.reset is None else self.reset
        ones = np.ones([steps, rows]) if self.weight is None else self.weight
        return self._replace(reset=never, weight=ones)


def text_steps(program: Program, preprocessing: Mapping[str, Any], path: str) -> Steps:
    """Returns the ids of a text as one row; each target is the next id.

    Raises:
      ExportError: the model has no vocabulary, or the text has fewer than two tokens.
      ValueError: the text cannot be read, or has tokens that the vocabulary does not know.
    """
    vocabulary = preprocessing.get("vocabulary")
    if not isinstance(vocabulary, Vocabulary) or program.interface.vocabulary_size is None:
        raise ExportError(
            f"A text cannot be read by {type(program.model).__name__} of this run, which has no "
            "vocabulary. Give a table instead."
        )
    text = read_bytes(path) if vocabulary.kind == "bytes" else read_text(path)
    ids = vocabulary.encode(text).astype(np.int32)[:, None]
    if len(ids) < 2:
        raise ExportError(f"{path!r} has {len(ids)} tokens, but at least 2 are needed.")
    return Steps({program.interface.inputs[0].name: ids[:-1]}, targets=ids[1:])


def table_steps(program: Program, preprocessing: Mapping[str, Any], path: str) -> Steps:
    """Returns the lines of a CSV table as one row.

    For a run of `experiments.forecast` they are prepared as in training, with targets. For any
    other run the columns are the inputs, standardized if the run has a standardizer of them.

    Raises:
      ExportError: the model reads other inputs.
      ValueError: the table cannot be read.
    """
    if "columns" in preprocessing:
        return _forecast_steps(program, preprocessing, path)
    (leaf, *others) = program.interface.inputs
    values = read_series(path).values
    standardizer = preprocessing.get("standardizer")
    if isinstance(standardizer, Standardizer) and len(standardizer.mean) == values.shape[1]:
        values = standardizer.apply(values)
    if others or leaf.shape != values.shape[1:] or tf.as_dtype(leaf.dtype).is_integer:
        raise ExportError(
            f"{path!r} has {values.shape[1]} columns of numbers, but the model reads "
            f"{program.interface.inputs}. Give a table with a column for each input."
        )
    if np.isnan(values).any():
        raise ExportError(
            f"{path!r} has missing values, which the model does not know. Fill them in."
        )
    return Steps({leaf.name: values[:, None].astype(leaf.dtype)})


def _forecast_steps(program: Program, preprocessing: Mapping[str, Any], path: str) -> Steps:
    """Returns the lines of a table as `experiments.forecast` reads them."""
    names = ("standardizer", "columns", "targets", "horizon", "path", "masked")
    standardizer, columns, targets, horizon, whole_path, masked = map(preprocessing.get, names)
    if not isinstance(standardizer, Standardizer):
        raise ExportError("The run has columns, but no standardizer of them. Train it again.")
    stream = SeriesStream(
        [read_series(path, columns)],
        standardizer,
        rows=1,
        window_length=LENGTH,
        targets=targets,
        horizon=horizon or 1,
        path=bool(whole_path),
        masked=masked,
        changes=True,
    )
    (leaf,) = program.interface.inputs
    if leaf.shape != (stream.input_size,):
        raise ExportError(
            f"{path!r} gives {stream.input_size} inputs a line, but the model reads {leaf.shape}."
        )
    window, _ = stream.windows(Cursor(), stream.windows_per_epoch)
    steps = stream.windows_per_epoch * LENGTH

    def joined(x: Any) -> np.ndarray:  # [K, T, 1, ...] to [K * T, 1, ...]
        return np.asarray(x).reshape([steps, *np.shape(x)[2:]])

    given = window.controls.reset
    reset = np.zeros([steps, 1], bool) if given is None else joined(given).copy()
    if window.start is not None:
        reset[::LENGTH] |= window.start
    weight = np.ones([steps, 1]) if window.weight is None else joined(window.weight)
    return Steps({leaf.name: joined(window.inputs)}, reset, joined(window.targets), weight)


def example_steps(program: Program, steps: int, rows: int, seed: int) -> Steps:
    """Returns steps of no data: a language model writes them itself, others get random numbers.

    The ids that a language model writes are like those that it will read.
    """
    rng = np.random.default_rng(seed)
    interface, size = program.interface, program.interface.vocabulary_size
    first = interface.inputs[0]
    writes = size is not None and len(interface.inputs) == 1 and first.shape == ()
    if writes and [leaf.shape for leaf in interface.outputs] == [(size,)]:
        ids = _written(program, steps + 1, rows, rng)
        return Steps({first.name: ids[:-1]}, targets=ids[1:])
    most = 2 if size is None else size
    inputs = {
        leaf.name: rng.integers(0, most, [steps, rows, *leaf.shape], np.int32)
        if tf.as_dtype(leaf.dtype).is_integer
        else rng.normal(size=[steps, rows, *leaf.shape]).astype(leaf.dtype)
        for leaf in interface.inputs
    }
    return Steps(inputs)


def _written(program: Program, steps: int, rows: int, rng: np.random.Generator) -> np.ndarray:
    """Lets a language model write ids `[T, B]`, each drawn from its distribution."""
    original, (leaf,) = Original(program), program.interface.inputs
    size = int(program.interface.vocabulary_size or 1)
    state, ids = original.initial_state(rows), [rng.integers(0, size, [1, rows], np.int32)]
    never = np.zeros([1, rows], bool)
    while len(ids) < steps:
        outputs, state = original.run({leaf.name: ids[-1]}, never, state)
        (logits,) = outputs.values()
        drawn = np.argmax(logits + rng.gumbel(size=logits.shape), axis=-1)
        ids.append(drawn.astype(np.int32))
    return np.concatenate(ids)
