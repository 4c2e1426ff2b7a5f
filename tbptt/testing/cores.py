"""Tests a recurrent layer, or a cell in a `Recurrent`: continuation, truncation, resets, rows."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tbptt.state import detach, select, take_rows
from tbptt.testing.compare import assert_close, require
from tbptt.types import Controls, Core, Model, Nest, State


def check_core(
    core: Core,
    inputs: Nest,
    state: State | None = None,
    *,
    jit_compile: bool = False,
    precision: str | None = None,
) -> None:
    """Checks a core: two windows are one, truncation, resets, independent rows; laws 1 to 4.

    Args:
      core: a `Core`; a cell is one in a `Recurrent`.
      inputs: `[T, B, ...]`, or a nest of such, with T > 1 and B > 1.
      state: leaves `[B, ...]`. None: see `random_state`.
      jit_compile: whether XLA compiles what is checked.
      precision: see `assert_close`.

    Raises:
      LawError: a law is broken.

    Example:
      >>> core = LSTM(3, 4, seed=make_seed(0))
      >>> check_core(core, tf.random.stateless_normal([5, 2, 3], seed=make_seed(1)))
    """
    how: dict[str, Any] = dict(jit_compile=jit_compile, precision=precision)
    check_continuation(core, inputs, state, **how)
    check_truncation(core, inputs, state, jit_compile=jit_compile)
    check_reset(core, inputs, state, **how)
    check_rows(core, inputs, state, **how)


def check_continuation(
    core: Core,
    inputs: Nest,
    state: State | None = None,
    *,
    controls: Controls | None = None,
    jit_compile: bool = False,
    precision: str | None = None,
) -> None:
    """Checks that a core gives the same in two windows in a row as in one long window: law 1.

    Outputs, final state and all gradients are compared, where the gradient is not cut between the
    windows.

    Args:
      core, inputs, state, jit_compile, precision: see `check_core`.
      controls: of the long window, with a `reset` or without. None: a few rows reset.

    Raises:
      LawError: they differ.
    """
    state = random_state(core, _rows(inputs)) if state is None else state
    steps, rows = _steps(inputs), _rows(inputs)
    if controls is None:
        controls = _resets(steps, rows, [(0, 0), (steps // 2, rows - 1)])
    seam = (steps + 1) // 3 or 1

    def in_two(inputs: Nest, state: State, controls: Controls) -> tuple[Nest, State]:
        resets = controls.reset
        begin = Controls(None if resets is None else resets[:seam])
        rest = Controls(None if resets is None else resets[seam:])
        first, state = core(_map(lambda x: x[:seam], inputs), state, begin)
        second, state = core(_map(lambda x: x[seam:], inputs), state, rest)
        return _map(lambda a, b: tf.concat([a, b], 0), first, second), state

    parameters = _parameters(core)
    assert_close(
        outputs_and_gradients(in_two, parameters, inputs, state, controls, jit_compile=jit_compile),
        outputs_and_gradients(core, parameters, inputs, state, controls, jit_compile=jit_compile),
        precision,
        law=1,
        what=f"windows of {seam} and {steps - seam} steps against one of {steps}",
    )


def check_truncation(
    core: Core, inputs: Nest, state: State | None = None, *, jit_compile: bool = False
) -> None:
    """Checks that no gradient passes a detached state to the window before: law 2.

    A core that keeps state in itself, or in variables, breaks it.

    Args:
      core, inputs, state, jit_compile: see `check_core`.

    Raises:
      LawError: a gradient crosses the beginning of the second window, or there is none at all.
    """
    state = random_state(core, _rows(inputs)) if state is None else state
    seam = _steps(inputs) // 2

    @tf.function(autograph=False, jit_compile=jit_compile)
    def gradients(before: Nest, within: Nest, state: State) -> Nest:
        with tf.GradientTape() as tape:
            sources = [_floats(before), _floats(state), _floats(within)]
            tape.watch(sources)
            _, carried = core(before, state)
            outputs, _ = core(within, detach(carried))
            loss = tf.add_n([tf.reduce_sum(part**2) for part in _floats(outputs)])
        zero = tf.UnconnectedGradients.ZERO
        parameters = _parameters(core)
        found = tape.gradient(loss, [*sources, parameters], unconnected_gradients=zero)
        return [[tf.convert_to_tensor(g) for g in part] for part in found]

    before, after = _map(lambda x: x[:seam], inputs), _map(lambda x: x[seam:], inputs)
    of_before, of_state, of_within, of_parameters = gradients(before, after, state)
    for name, found in (("inputs of the first window", of_before), ("state before it", of_state)):
        require(
            not any(np.any(gradient) for gradient in found),
            2,
            f"the loss of the second window has a gradient with respect to the {name}.",
        )
    require(
        any(np.any(gradient) for gradient in [*of_within, *of_parameters]),
        2,
        "the loss of a window has no gradient at all, neither of its inputs nor of a parameter.",
    )


def check_reset(
    core: Core,
    inputs: Nest,
    state: State | None = None,
    *,
    jit_compile: bool = False,
    precision: str | None = None,
) -> None:
    """Checks that a row that resets forgets everything before, NaN included: law 3.

    The last row resets at the first, a middle and the last step of a window. Everything before
    that, its inputs and its state, is NaN. From there on it must equal a row that begins there,
    and the other rows must not notice.

    Args:
      core, inputs, state, jit_compile, precision: see `check_core`.

    Raises:
      LawError: the row remembers something, or another row notices.
    """
    state = random_state(core, _rows(inputs)) if state is None else state
    steps, rows = _steps(inputs), _rows(inputs)
    row, others = rows - 1, list(range(rows - 1))
    chosen = tf.constant([b == row for b in range(rows)])
    poisoned_state = select(chosen, _map(_poisoned, state), state)
    run = tf.function(core, autograph=False, jit_compile=jit_compile)
    plain, plain_final = core(inputs, state)

    def compare(actual: Nest, expected: Nest, what: str) -> None:
        assert_close(actual, expected, precision, law=3, what=what)

    for step in sorted({0, steps // 2, steps - 1}):
        before = tf.logical_and(tf.range(steps)[:, None] < step, chosen)  # [T, B]

        def poison(x: tf.Tensor, before: tf.Tensor = before) -> tf.Tensor:
            where = tf.reshape(before, [steps, rows, *[1] * (len(x.shape) - 2)])
            return tf.where(where, _poisoned(x), x)

        controls = _resets(steps, rows, [(step, row)])
        outputs, final = run(_map(poison, inputs), poisoned_state, controls)
        from_there = _map(lambda x, step=step: x[step:], inputs)
        fresh, fresh_final = core(from_there, core.initial_state(rows))

        what = f"row {row}, which resets at step {step}, against a row that begins there"
        found = _map(lambda x, step=step: x[step:, row], outputs)
        compare(found, _map(lambda x: x[:, row], fresh), what)
        compare(take_rows(final, [row]), take_rows(fresh_final, [row]), f"final state of {what}")
        what = f"the rows beside row {row}, which resets at step {step}"
        beside, expected = (
            _map(lambda x: tf.gather(x, others, axis=1), each) for each in (outputs, plain)
        )
        compare(beside, expected, what)
        compare(take_rows(final, others), take_rows(plain_final, others), f"final state of {what}")


def check_rows(
    core: Core,
    inputs: Nest,
    state: State | None = None,
    *,
    jit_compile: bool = False,
    precision: str | None = None,
) -> None:
    """Checks that permuting rows permutes results, and that no row sees another: law 4.

    Args:
      core, inputs, state, jit_compile, precision: see `check_core`.

    Raises:
      LawError: a row's results depend on its place, or on another row.
    """
    state = random_state(core, _rows(inputs)) if state is None else state
    steps, rows = _steps(inputs), _rows(inputs)
    controls = _resets(steps, rows, [(0, 1), (steps // 2, rows - 1)])
    order = [rows - 1, *range(rows - 1)]
    run = tf.function(core, autograph=False, jit_compile=jit_compile)
    outputs, final = run(inputs, state, controls)
    moved = run(
        _map(lambda x: tf.gather(x, order, axis=1), inputs),
        take_rows(state, order),
        Controls(tf.gather(controls.reset, order, axis=1)),
    )
    expected = (_map(lambda x: tf.gather(x, order, axis=1), outputs), take_rows(final, order))
    assert_close(moved, expected, precision, law=4, what=f"rows in the order {order}")
    with tf.GradientTape() as tape:
        watched = [_floats(inputs), _floats(state)]
        tape.watch(watched)
        outputs, final = core(inputs, state, controls)
        of_row = [*_map(lambda x: x[:, 1], _floats(outputs)), *_map(lambda x: x[1], _floats(final))]
        loss = tf.add_n([tf.reduce_sum(part**2) for part in of_row])
    of_inputs, of_state = tape.gradient(loss, watched)
    others = [b for b in range(rows) if b != 1]
    for name, axis, found in (("inputs", 1, of_inputs), ("state", 0, of_state)):
        for gradient in found:
            leak = gradient is not None and np.any(np.take(gradient.numpy(), others, axis))
            require(not leak, 4, f"what row 1 gives depends on the {name} of other rows.")


def check_same_core(
    actual: Core,
    expected: Core,
    inputs: Nest,
    state: State | None = None,
    *,
    controls: Controls | None = None,
    jit_compile: bool = False,
    precision: str | None = None,
    **options: Any,
) -> None:
    """Checks that two cores give the same outputs, final state and gradients: law 5.

    Args:
      actual: a core, say on the backend `scan`, or a faster form of one.
      expected: one with the same parameters, say on the backend `reference`; it is not compiled.
      inputs, state, precision: see `check_core`.
      controls: of the window. None: a few rows reset.
      jit_compile: whether XLA compiles `actual`.
      **options: for both cores, as `training` and `seed`.

    Raises:
      LawError: they differ.
    """
    state = random_state(expected, _rows(inputs)) if state is None else state
    steps, rows = _steps(inputs), _rows(inputs)
    if controls is None:
        controls = _resets(steps, rows, [(0, 0), (steps // 2, 1), (steps - 1, rows - 1)])
    found, wanted = (
        outputs_and_gradients(
            core, _parameters(core), inputs, state, controls, jit_compile=jit, **options
        )
        for core, jit in ((actual, jit_compile), (expected, False))
    )
    assert_close(found, wanted, precision, law=5, what="outputs, final state and gradients")


def random_state(core: Core | Model, rows: int, seed: int = 13) -> State:
    """Returns a state as it may come out of the window before: normal, deviation 0.5.

    Parts that are not floating-point numbers are those of the initial state.
    """
    rng = np.random.default_rng(seed)

    def leaf(x: tf.Tensor) -> tf.Tensor:
        values = 0.5 * rng.normal(size=x.shape)
        return tf.constant(values, x.dtype) if x.dtype.is_floating else tf.identity(x)

    return _map(leaf, core.initial_state(rows))


def outputs_and_gradients(
    function: Callable[..., tuple[Nest, State]],
    parameters: Sequence[tf.Variable],
    inputs: Nest,
    state: State,
    controls: Controls | None = None,
    *,
    jit_compile: bool = False,
    eager: bool = False,
    **options: Any,
) -> tuple[Nest, State, Nest]:
    """Computes outputs, final state, and the gradients of a loss that looks at all of both.

    Args:
      function: `(inputs, state, controls, **options) -> outputs, state`, as a core.
      parameters: with respect to which the gradient is taken, beside inputs and state.
      inputs, state, controls, options: what it is called with.
      jit_compile: whether XLA compiles it.
      eager: it runs op by op, not in a `tf.function`.

    Returns:
      Outputs, final state, and gradients: of the parameters, the inputs, the state.
    """

    def run(inputs: Nest, state: State) -> tuple[Nest, State, Nest]:
        rng = np.random.default_rng(17)
        sources = [_floats(inputs), _floats(state)]
        with tf.GradientTape() as tape:
            tape.watch(sources)
            outputs, final = function(inputs, state, controls or Controls(), **options)
            parts = [*_floats(outputs), *_floats(final)]
            weights = [tf.constant(rng.normal(size=part.shape), part.dtype) for part in parts]
            pairs = zip(parts, weights, strict=True)
            loss = tf.add_n([tf.reduce_sum(part * weight) for part, weight in pairs])
        gradients = tape.gradient(
            loss,
            [list(parameters), *sources],
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        return outputs, final, _map(tf.convert_to_tensor, gradients)

    if eager:
        return run(inputs, state)
    return tf.function(run, autograph=False, jit_compile=jit_compile)(inputs, state)


def _map(function: Callable, *nests: Nest) -> Nest:
    return tf.nest.map_structure(function, *nests)


def _floats(nest: Nest) -> list[tf.Tensor]:
    """Returns the leaves that have a gradient."""
    return [leaf for leaf in tf.nest.flatten(nest) if leaf.dtype.is_floating]


def _parameters(core: Core) -> list[tf.Variable]:
    return list(core.trainable_variables)  # type: ignore[attr-defined]


def _steps(inputs: Nest) -> int:
    return int(tf.nest.flatten(inputs)[0].shape[0])


def _rows(inputs: Nest) -> int:
    return int(tf.nest.flatten(inputs)[0].shape[1])


def _resets(steps: int, rows: int, places: Sequence[tuple[int, int]]) -> Controls:
    """Returns controls with a reset `[T, B]` that is true at these (t, b)."""
    reset = np.zeros([steps, rows], bool)
    for place in places:
        reset[place] = True
    return Controls(tf.constant(reset))


def _poisoned(x: tf.Tensor) -> tf.Tensor:
    """Returns NaN, or where there is none other valid ids: zeros."""
    return x * np.nan if x.dtype.is_floating else tf.zeros_like(x)
