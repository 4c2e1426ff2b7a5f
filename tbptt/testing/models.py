"""Tests a model of your own: what `loss` returns, continuation, resets, independent rows."""

from typing import Any

import numpy as np
import tensorflow as tf

from tbptt.state import select, take_rows
from tbptt.testing.compare import assert_close, assert_same_bits, require
from tbptt.training.window import LOSS, PENALTY, row_count, step_count
from tbptt.types import Controls, Model, Nest, Seed, State, Window, WindowLoss


def check_model(
    model: Model,
    window: Window,
    *,
    jit_compile: bool = False,
    precision: str | None = None,
) -> None:
    """Checks a model: what `loss` returns, continuation, resets, independent rows, evaluation.

    These are laws 1, 3, 4, 5 and 9. Loss and metrics have the documented shapes; two windows in a
    row have the losses of one long window; a row that resets inside the window forgets what was
    before; permuting rows permutes losses; the model's predictions and its loss lead to the same
    state; scoring changes no variable; and the same seed gives the same loss in training.

    Args:
      model: a `Model`.
      window: one window, `[T, B, ...]`, with T > 1 and B > 1; its `controls` are left out.
      jit_compile: whether XLA compiles what is checked.
      precision: see `assert_close`.

    Raises:
      LawError: a law is broken.

    Example:
      >>> model = LanguageModel(5, 3, LSTM(3, 4, seed=make_seed(0)), seed=make_seed(1))
      >>> ids = tf.constant([[0, 1], [2, 3], [4, 0]])
      >>> check_model(model, Window(ids, ids))
    """
    window = window._replace(controls=Controls())
    state = model.initial_state(row_count(window))
    variables = list(model.variables)  # type: ignore[attr-defined]
    before = [variable.numpy() for variable in variables]

    @tf.function(autograph=False, jit_compile=jit_compile)
    def score(window: Window, state: State) -> tuple[WindowLoss, State]:
        return model.loss(window, state, training=False, seed=None)

    result, final = score(window, state)
    _check_contract(window, result, final, state)
    assert_same_bits(score(window, state), (result, final), law=9, what="a window scored twice")
    again = [variable.numpy() for variable in variables]
    assert_same_bits(again, before, law=9, what="the variables after scoring")

    how: dict[str, Any] = dict(precision=precision)
    plain = model.loss(window, state, training=False, seed=None)
    assert_close((result, final), plain, **how, law=5, what="loss and state")
    _, predicted = model(window.inputs, state, window.controls)
    assert_close(predicted, final, **how, law=0, what="the state after model(inputs)")

    steps, rows = step_count(window), row_count(window)
    seam = max(1, steps // 2)
    first, carried = score(_part(window, 0, seam), state)
    second, last = score(_part(window, seam, steps), carried)
    for name, (whole, *parts) in _per_step(result, first, second).items():
        what = f"{name} of windows of {seam} and {steps - seam} steps against one of {steps}"
        assert_close(tf.concat(parts, 0), whole, **how, law=1, what=what)
    assert_close(last, final, **how, law=1, what="the state after two windows")

    row = rows - 1
    reset = np.zeros([steps, rows], bool)
    reset[seam, row] = True
    chosen = tf.constant([b == row for b in range(rows)])
    other = tf.nest.map_structure(lambda x: x + tf.ones_like(x), carried)
    found, found_final = score(window._replace(controls=Controls(tf.constant(reset))), state)
    begun = select(chosen, model.initial_state(rows), carried)
    expected, expected_final = score(_part(window, seam, steps), begun)
    for name, (actual, wanted) in _per_step(found, expected).items():
        what = f"{name} of row {row}, which resets at step {seam}, against a row that begins there"
        assert_close(actual[seam:], wanted, **how, law=3, what=what)
    assert_close(found_final, expected_final, **how, law=3, what="the state after a reset")
    remembered, _ = score(_part(window, seam, steps), other)
    require(
        not np.array_equal(remembered.loss, second.loss),
        1,
        "the loss does not depend on the state that a window begins with.",
    )

    order = [row, *range(row)]
    moved, moved_final = score(_of_rows(window, order), take_rows(state, order))
    for name, (actual, whole) in _per_step(moved, result).items():
        expected_rows = tf.gather(whole, order, axis=1)
        assert_close(actual, expected_rows, **how, law=4, what=f"{name} of rows {order}")
    assert_close(moved_final, take_rows(final, order), **how, law=4, what=f"state of rows {order}")

    def train(seed: Seed) -> tuple[WindowLoss, State]:
        return model.loss(window, state, training=True, seed=seed)

    compiled = tf.function(train, autograph=False, jit_compile=jit_compile)
    seed = tf.constant([3, 5])
    what = "loss and state in training, twice with the same seed"
    assert_same_bits(compiled(seed), compiled(seed), law=0, what=what)


def _check_contract(window: Window, result: WindowLoss, final: State, state: State) -> None:
    """Checks shapes and types of what `loss` returned."""
    shape = [step_count(window), row_count(window)]
    require(
        isinstance(result, WindowLoss),
        0,
        f"loss must return (WindowLoss, state), and returned a {type(result).__name__} first.",
    )
    per_step = {LOSS: result.loss}
    if result.penalty is not None:
        per_step[PENALTY] = result.penalty
    for name, value in per_step.items():
        require(
            value.shape.as_list() == shape,
            0,
            f"{name} has shape {value.shape.as_list()} instead of [T, B] = {shape}.",
        )
    for name, value in result.metrics.items():
        shapes = [part.shape.as_list() for part in tf.nest.flatten(value)]
        fine = shapes == [[], []] if isinstance(value, tuple) else shapes in ([[]], [shape])
        require(
            fine and name not in (LOSS, PENALTY),
            0,
            f"the metric {name!r} has shape {shapes}; it must be [T, B] = {shape}, a scalar, or a "
            "pair of scalars (sum, weight), under another name than 'loss' and 'penalty'.",
        )
    kinds = [
        [(leaf.dtype.name, leaf.shape.as_list()) for leaf in tf.nest.flatten(nest)]
        for nest in (final, state)
    ]
    require(
        kinds[0] == kinds[1], 0, f"the state after a window is {kinds[0]}, before it {kinds[1]}."
    )


def _per_step(*results: WindowLoss) -> dict[str, tuple[tf.Tensor, ...]]:
    """Returns what results have for every step, `[T, B]`, by name."""
    found = {LOSS: tuple(result.loss for result in results)}
    if results[0].penalty is not None:
        found[PENALTY] = tuple(result.penalty for result in results)
    for name, value in results[0].metrics.items():
        if not isinstance(value, tuple) and len(value.shape):
            found[name] = tuple(result.metrics[name] for result in results)
    return found


def _part(window: Window, first: int, last: int) -> Window:
    """Returns some steps of a window."""

    def part(nest: Nest) -> Nest:
        return tf.nest.map_structure(lambda x: x[first:last], nest)

    return Window(
        part(window.inputs),
        part(window.targets),
        None if window.weight is None else window.weight[first:last],
    )


def _of_rows(window: Window, order: list[int]) -> Window:
    """Returns a window with its rows in another order."""

    def moved(nest: Nest) -> Nest:
        return tf.nest.map_structure(lambda x: tf.gather(x, order, axis=1), nest)

    weight = None if window.weight is None else tf.gather(window.weight, order, axis=1)
    return Window(moved(window.inputs), moved(window.targets), weight)
