"""Tests predicting with the state: streams and exports give what the forward pass gives."""

import pathlib
import tempfile

import numpy as np
import tensorflow as tf

from tbptt.serving.exports import write_export
from tbptt.serving.exports.interface import named_arrays
from tbptt.serving.streamer import Streamer
from tbptt.testing.compare import assert_close
from tbptt.types import Controls, Model, Nest


def check_streaming(
    model: Model,
    inputs: Nest,
    *,
    jit_compile: bool = False,
    precision: str | None = None,
    seed: int = 0,
) -> None:
    """Checks that streaming gives the outputs and the state of the forward pass: law 10.

    Every row of `inputs` is a session. Its steps are fed in chunks of random lengths, together with
    random other sessions.

    Args:
      model: a `Model`.
      inputs: `[T, B, ...]` with B > 1, or a nest of such.
      jit_compile: whether XLA compiles the streamer's programs.
      precision: see `assert_close`.
      seed: of the chunks and of who is fed together.

    Raises:
      LawError: outputs or state differ.

    Example:
      >>> model = LanguageModel(5, 3, LSTM(3, 4, seed=make_seed(0)), seed=make_seed(1))
      >>> check_streaming(model, tf.constant([[0, 1], [2, 3], [4, 0]]))
    """
    steps, rows = tf.nest.flatten(inputs)[0].shape[:2]
    expected, state = model(inputs, model.initial_state(rows))
    arrays = tf.nest.map_structure(np.asarray, inputs)
    streamer = Streamer(
        model, capacity=rows, chunk_sizes=(3, 1), batch_sizes=(1, 2), jit_compile=jit_compile
    )
    rng = np.random.default_rng(seed)
    read = [0] * rows
    outputs: list[list[Nest]] = [[] for _ in range(rows)]
    for row in range(rows):
        streamer.open(str(row))
    while min(read) < steps:
        left = [row for row in range(rows) if read[row] < steps]
        chosen = rng.permutation(left)[: rng.integers(1, len(left) + 1)]
        parts = {row: slice(read[row], rng.integers(read[row], steps) + 1) for row in chosen}
        chunks = {
            str(row): tf.nest.map_structure(lambda x, r=row, p=part: x[p, r], arrays)
            for row, part in parts.items()
        }
        for name, found in streamer.feed_many(chunks).items():
            outputs[int(name)].append(found)
            read[int(name)] = int(parts[int(name)].stop)
    for row in range(rows):
        found = tf.nest.map_structure(lambda *parts: np.concatenate(parts), *outputs[row])
        wanted = tf.nest.map_structure(lambda x, r=row: x[:, r], expected)
        assert_close(found, wanted, precision, law=10, what=f"the outputs of session {row}")
        last = tf.nest.map_structure(lambda x, r=row: x[r : r + 1], state)
        what = f"the state of session {row}"
        assert_close(streamer.state(str(row)), last, precision, law=10, what=what)


def check_export(
    model: Model,
    inputs: Nest,
    kind: str = "saved_model",
    *,
    precision: str | None = None,
    seed: int = 0,
) -> None:
    """Checks that an export gives the outputs and the state of the forward pass: law 10.

    It is written to a temporary folder and opened again. It reads `inputs` in chunks of random
    lengths, and rows start anew at random steps.

    Args:
      model: a `Model`.
      inputs: `[T, B, ...]`, or a nest of such.
      kind: of `tbptt.serving.exports.KINDS`.
      precision: see `assert_close`.
      seed: of chunks and resets.

    Raises:
      LawError: outputs or state differ.
      ExportError: the model cannot be exported.

    Example:
      >>> model = LanguageModel(5, 3, LSTM(3, 4, seed=make_seed(0)), seed=make_seed(1))
      >>> check_export(model, tf.constant([[0, 1], [2, 3], [4, 0]]), "stablehlo")
    """
    steps, rows = tf.nest.flatten(inputs)[0].shape[:2]
    rng = np.random.default_rng(seed)
    reset = rng.random([steps, rows]) < 0.2
    outputs, last = model(inputs, model.initial_state(rows), Controls(tf.constant(reset)))
    example = tf.nest.map_structure(lambda x: np.asarray(x[:, 0]), inputs)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "export")
        export = write_export(model, path, kind, example=example, batch=2, checked_steps=1)
        state, chunks, read = export.initial_state(rows), [], 0
        while read < steps:
            now = slice(read, int(rng.integers(read, steps)) + 1)
            chunk = {name: x[now] for name, x in named_arrays(inputs, "inputs").items()}
            found, state = export.step(chunk, state, reset[now])
            chunks.append(found if isinstance(found, dict) else {"outputs": found})
            read = now.stop
    wanted = named_arrays(outputs, "outputs")
    joined = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in wanted}
    what = f"of the export ({kind})"
    assert_close(joined, wanted, precision, law=10, what=f"the outputs {what}")
    wanted = named_arrays(last, "state")
    assert_close(state, wanted, precision, law=10, what=f"the state {what}")
