"""Laws 6, 7, 8, 9 and 12 for a trainer with a model, an optimizer and a stream of one's own."""

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
from tbptt.types import Nest, Stream

MakeTrainer = Callable[..., Trainer]
"""`make_trainer() -> Trainer`: a new one, always with the same initial values.

For `check_replicas` it takes `replicas=`, and makes all that has variables in their `scope()`.
"""


def check_training(make_trainer: MakeTrainer, stream: Stream, *, windows: int = 5) -> None:
    """Checks laws 6, 7, 9 and 12 for a trainer: calls, resume, evaluation, one trace.

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
    check_calls(make_trainer, stream, windows=windows)
    check_resume(make_trainer, stream, windows=windows)
    check_evaluation(make_trainer, stream, windows=windows)


def check_calls(make_trainer: MakeTrainer, stream: Stream, *, windows: int = 5) -> None:
    """Checks laws 6 and 12: windows in one call or in several give the same bits, by one trace.

    Args:
      make_trainer, stream, windows: see `check_training`.

    Raises:
      LawError: the bits differ, or the program was traced again.
    """
    results = []
    for windows_per_call in (windows, 2, 1):
        trainer = make_trainer()
        run_state = _run(trainer, stream, _begin(trainer, stream), windows, windows_per_call)
        results.append(_everything(trainer, run_state))
        require(trainer.traces == 1, 12, f"the program was traced {trainer.traces} times.")
        what = f"{windows} windows in calls of {windows_per_call}, against one call"
        assert_same_bits(results[-1], results[0], law=6, what=what)


def check_resume(make_trainer: MakeTrainer, stream: Stream, *, windows: int = 5) -> None:
    """Checks law 7: a run that is saved and resumed, by other objects, gives the same bits.

    The checkpoint goes through a temporary folder on disk.

    Args:
      make_trainer, stream, windows: see `check_training`.

    Raises:
      LawError: the bits differ from those of a run that was left alone.
    """
    trainer = make_trainer()
    whole = _everything(trainer, _run(trainer, stream, _begin(trainer, stream), windows, windows))
    trainer, other = make_trainer(), make_trainer()
    cut = windows // 2
    run_state = _run(trainer, stream, _begin(trainer, stream), cut, cut)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "checkpoint")
        write_checkpoint(path, snapshot(trainer, run_state))
        run_state = restore(read_checkpoint(path), other, _begin(other, stream))
    run_state = _run(other, stream, run_state, windows, windows)
    what = f"{windows} windows, saved and resumed after {cut}, against a run left alone"
    assert_same_bits(_everything(other, run_state), whole, law=7, what=what)


def check_evaluation(make_trainer: MakeTrainer, stream: Stream, *, windows: int = 5) -> None:
    """Checks law 9: an evaluation between windows changes nothing, and gives one figure.

    Args:
      make_trainer, stream, windows: see `check_training`.

    Raises:
      LawError: training goes on differently, or two evaluations differ.
    """
    results = []
    for evaluates in (False, True):
        trainer = make_trainer()
        evaluate = Evaluator(trainer.model, stream, jit_compile=trainer.jit_compile)
        run_state = _begin(trainer, stream)
        for step in range(1, windows + 1):
            run_state = _run(trainer, stream, run_state, step, 1)
            if evaluates and step in (1, windows - 1):
                once, again = evaluate(), evaluate()
                require(once == again, 9, f"two evaluations in a row gave {once} and {again}.")
        results.append(_everything(trainer, run_state))
    what = f"{windows} windows with evaluations between them, against a run without"
    assert_same_bits(results[1], results[0], law=9, what=what)


def check_replicas(
    make_trainer: MakeTrainer,
    stream: Stream,
    replicas: Replicas,
    *,
    windows: int = 5,
    precision: str | None = None,
) -> None:
    """Checks law 8: R replicas with B / R rows each follow one device with all B rows.

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
        run_state = _begin(trainer, stream)
        chunk, _ = feed.take(run_state.cursor, windows)
        loop_state, metrics = trainer(run_state.loop_state, chunk)
        means = {name: np.float32(mean) for name, mean in metrics.read().means.items()}
        evaluation = Evaluator(trainer.model, stream, replicas=each, jit_compile=False)()
        means |= {f"evaluated {name}": np.float32(m) for name, m in evaluation.metrics.items()}
        state: Any = trainer.gather(loop_state).state
        parameters = [tf.convert_to_tensor(p) for p in trainer.model.trainable_variables]
        results.append({"metrics": means, "parameters": parameters, "state": state})
    what = f"{replicas.count} replicas against one device"
    assert_close(results[1], results[0], precision, law=8, what=what)


def _begin(trainer: Trainer, stream: Stream) -> RunState:
    return RunState(trainer.initial_loop_state(stream.rows))


def _run(
    trainer: Trainer, stream: Stream, run_state: RunState, windows: int, windows_per_call: int
) -> RunState:
    return train(trainer, open_feed(stream, windows_per_call), run_state, windows=windows)


def _everything(trainer: Trainer, run_state: RunState) -> Nest:
    """Returns copies of all variables by name, and of the loop state."""
    variables = {name: v.numpy() for name, v in variables_of(trainer).items()}
    loop_state = tf.nest.map_structure(lambda x: x.numpy(), trainer.gather(run_state.loop_state))
    return {"variables": variables, "loop state": loop_state}
