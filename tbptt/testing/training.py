"""Tests a trainer with parts of your own: resume to the bit, evaluation, one trace, replicas."""

import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tbptt.checkpoint.snapshot import restore, snapshot, variables_of
from tbptt.checkpoint.store import read_checkpoint, write_checkpoint
from tbptt.distribution import Replicas
from tbptt.streams.feed import open_feed
from tbptt.testing.compare import assert_close, assert_same_bits, require
from tbptt.training.evaluate import Evaluator
from tbptt.training.loop import RunState, train
from tbptt.training.trainer import Trainer
from tbptt.types import Cursor, Nest, Stream

MakeTrainer = Callable[..., Trainer]
"""`make_trainer() -> Trainer`: a new one, always with the same initial values.

For `check_replicas` it takes `replicas=`, and makes all that has variables in their `scope()`.
"""


def check_training(make_trainer: MakeTrainer, stream: Stream, *, windows: int = 5) -> None:
    """Checks that resume is exact to the bit, and that evaluation and calls change nothing.

    These are laws 6, 7, 9 and 12. Windows in one call or in several give the same bits; an
    evaluation between them changes nothing, and gives the same figure twice; a run that is saved to
    disk and resumed by another trainer gives the bits of a run left alone; and no program is traced
    again.

    Args:
      make_trainer: see `MakeTrainer`.
      stream: to train on, and to evaluate.
      windows: how many windows are trained, 2 or more.

    Raises:
      LawError: a law is broken.

    Example:
      >>> def make_trainer():
      ...     model = LanguageModel(5, 3, LSTM(3, 4, seed=make_seed(0)), seed=make_seed(1))
      ...     return Trainer(model, adam(0.1), jit_compile=False)
      >>> stream = ContiguousStream(np.arange(25) % 5, rows=2, window_length=4, vocabulary_size=5)
      >>> check_training(make_trainer, stream)
    """
    trainer = make_trainer()
    first_values = [variable.numpy() for variable in trainer.variables]

    def begin() -> RunState:
        """Puts all variables back: a trainer that begins again is as good as a new one."""
        for variable, value in zip(trainer.variables, first_values, strict=True):
            variable.assign(value)
        return RunState(trainer.initial_loop_state(stream.rows))

    def run(trainer: Trainer, run_state: RunState, step: int, windows_per_call: int) -> RunState:
        return train(trainer, open_feed(stream, windows_per_call), run_state, windows=step)

    whole = _everything(trainer, run(trainer, begin(), windows, windows))
    for windows_per_call in (2, 1):
        found = _everything(trainer, run(trainer, begin(), windows, windows_per_call))
        what = f"{windows} windows in calls of {windows_per_call}, against one call"
        assert_same_bits(found, whole, law=6, what=what)

    evaluate = Evaluator(trainer.model, stream, jit_compile=trainer.jit_compile)
    run_state = begin()
    for step in (1, windows - 1, windows):
        run_state = run(trainer, run_state, step, windows)
        once, again = evaluate(), evaluate()
        require(once == again, 9, f"two evaluations in a row gave {once} and {again}.")
    what = f"{windows} windows with evaluations between them, against a run without"
    assert_same_bits(_everything(trainer, run_state), whole, law=9, what=what)

    other, cut = make_trainer(), windows // 2
    run_state = run(trainer, begin(), cut, cut)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "checkpoint")
        write_checkpoint(path, snapshot(trainer, run_state))
        run_state = restore(
            read_checkpoint(path), other, RunState(other.initial_loop_state(stream.rows))
        )
    found = _everything(other, run(other, run_state, windows, windows))
    what = f"{windows} windows, saved and resumed after {cut}, against a run left alone"
    assert_same_bits(found, whole, law=7, what=what)

    traces = (trainer.traces, other.traces, evaluate.traces)
    require(traces == (1, 1, 1), 12, f"trainers and evaluator were traced {traces} times.")


def check_replicas(
    make_trainer: MakeTrainer,
    stream: Stream,
    replicas: Replicas,
    *,
    windows: int = 5,
    precision: str | None = None,
) -> None:
    """Checks that R replicas with B / R rows each follow one device with all B rows: law 8.

    It is checked within tolerance, because sums over replicas are rounded in another order, and
    without dropout, which every replica draws for itself.

    Args:
      make_trainer: see `MakeTrainer`; it is called with `replicas=`.
      stream: its rows are a multiple of the replicas.
      replicas: of `open_replicas`, two or more.
      windows: how many windows are trained.
      precision: see `assert_close`.

    Raises:
      LawError: losses, metrics, parameters or state differ.
    """
    results: list[Nest] = []
    for each in (Replicas(), replicas):
        trainer = make_trainer(replicas=each)
        feed = open_feed(stream, windows, replicas=each)
        chunk, _ = feed.take(Cursor(), windows)
        loop_state, metrics = trainer(trainer.initial_loop_state(stream.rows), chunk)
        means = {name: np.float32(mean) for name, mean in metrics.read().means.items()}
        evaluation = Evaluator(trainer.model, stream, replicas=each, jit_compile=False)()
        means |= {f"evaluated {name}": np.float32(m) for name, m in evaluation.metrics.items()}
        state: Any = trainer.gather(loop_state).state
        parameters = [tf.convert_to_tensor(p) for p in trainer.model.trainable_variables]
        results.append({"metrics": means, "parameters": parameters, "state": state})
    what = f"{replicas.count} replicas against one device"
    assert_close(results[1], results[0], precision, law=8, what=what)


def _everything(trainer: Trainer, run_state: RunState) -> Nest:
    """Returns copies of all variables by name, and of the loop state."""
    variables = {name: v.numpy() for name, v in variables_of(trainer).items()}
    loop_state = tf.nest.map_structure(lambda x: x.numpy(), trainer.gather(run_state.loop_state))
    return {"variables": variables, "loop state": loop_state}
