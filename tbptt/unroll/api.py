"""`unroll`: runs a cell over a window; `reference.py` defines how rows reset, by `select`."""

import tensorflow as tf

from tbptt import checks
from tbptt.state import zeros_like
from tbptt.types import Controls, Nest, State
from tbptt.unroll import reference, scan
from tbptt.unroll.reference import Cell

BACKENDS = {"reference": reference.run, "scan": scan.run}
KEEP = ("gates", "states")  # values that a layer keeps for the gradient, see `recompute`


def check_backend(backend: str, *own: str) -> None:
    """Raises ValueError unless `backend` is one of `unroll`'s or of the layer's `own`."""
    checks.check_choice("backend", backend, ["auto", *BACKENDS, *own])


def unroll(
    cell: Cell,
    inputs: Nest,
    state: State,
    controls: Controls = Controls(),
    *,
    initial_state: State | None = None,
    backend: str = "auto",
) -> tuple[Nest, State]:
    """Runs `cell` over all `T` steps of a window, resetting rows where `controls.reset` says so.

        state_t = initial_state where reset_t else state_{t-1}
        output_t, state_t = cell(inputs_t, state_t)

    The result is the same for every backend: `reference` is a Python loop, one copy of
    the cell a step, and defines what the others compute; `scan` is one `tf.while_loop`.

    Args:
      cell: `(inputs_t, state) -> (output_t, state)`, leaves `[B, ...]`; the new state has
        the structure, shapes and dtypes of the old one. May close over variables.
      inputs: a nest of `[T, B, ...]`, T and B static.
      state: a nest of `[B, ...]`, the rows' state after the window before.
      controls: resets inside the window, factors on the gradient between steps, and the step whose
        state is returned, see `Controls`. With `advance` that state is a constant; without, it is
        the one after the last step, with its gradient. Fields that are None cost nothing.
      initial_state: the state of a row after a reset, like `state`. None: zeros.
      backend: `reference`, `scan`, or `auto`, which is `scan`.

    Returns:
      The outputs, a nest of `[T, B, ...]`, and the state after the last step, or after `advance`
      steps.

    Raises:
      ValueError, TypeError: shapes, dtypes or the backend's name do not fit.

    Example: a running sum that starts anew at step 2.
      >>> total = lambda x, s: (s + x, s + x)
      >>> x = tf.ones([4, 1])
      >>> reset = tf.constant([[False], [False], [True], [False]])
      >>> outputs, last = unroll(total, x, tf.zeros([1]), Controls(reset))
      >>> outputs[:, 0].numpy().tolist(), last.numpy().tolist()
      ([1.0, 2.0, 1.0, 2.0], [2.0])
    """
    check_backend(backend)
    initial_state = check_window(inputs, state, controls, initial_state)
    run = BACKENDS["scan" if backend == "auto" else backend]
    return run(cell, inputs, state, controls, initial_state)


def check_window(
    inputs: Nest,
    state: State,
    controls: Controls,
    initial_state: State | None,
) -> State:
    """Checks the arguments of `unroll` and returns the initial state to select at a reset."""
    reset, gradient_scale, advance = controls
    first = tf.nest.flatten(inputs)[0]
    if first.shape.rank is None or None in first.shape[:2]:
        raise ValueError(
            f"inputs have shape {first.shape}, but T and B must be known when the program "
            "is traced: every other size would be another program."
        )
    steps, rows = first.shape[:2]
    checks.check_at_least("window length T of inputs", steps, 1)
    for part in tf.nest.flatten(inputs):
        checks.check_shape("inputs", part, [steps, rows, *[None] * (len(part.shape) - 2)])
    for part in tf.nest.flatten(state):
        checks.check_shape("state", part, [rows, *[None] * (len(part.shape) - 1)])
    if gradient_scale is not None:
        checks.check_shape("gradient_scale", gradient_scale, [steps, rows])
    if advance is not None:
        checks.check_shape("advance", advance, [])
    if reset is None:
        return state
    checks.check_shape("reset", reset, [steps, rows])
    checks.check_dtype("reset", reset, tf.bool)
    if initial_state is None:
        return zeros_like(state)
    checks.check_like(
        "initial_state", initial_state, state, "A row that resets gets it as its state."
    )
    return initial_state
