"""Tests streaming: a `Streamer` of your model gives what its forward pass gives, chunk by chunk."""

import numpy as np
import tensorflow as tf

from tbptt.serving.streamer import Streamer
from tbptt.testing.compare import assert_close
from tbptt.types import Model, Nest


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
