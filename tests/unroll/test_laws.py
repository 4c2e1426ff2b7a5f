"""The laws of the design that a core alone must keep: 1 chunks, 2 cut, 3 reset, 4 rows, 5 backends.

Each for LSTM, GRU, a stack of both and a cell of the test's own, on every backend, compiled
and not.
"""

import functools
import itertools

import numpy as np
import pytest
import tensorflow as tf

import tbptt
from tbptt import testing
from tbptt.state import detach
from tbptt.testing import assert_close, random_state
from tests.conftest import BACKENDS, OPTIONS, make_core, make_inputs, run_with_gradients

ROWS, STEPS = 3, 6


def resets(*places, steps=STEPS, rows=ROWS):
    """Controls with a reset `[T, B]` that is true at these (t, b)."""
    reset = np.zeros([steps, rows], bool)
    for place in places:
        reset[place] = True
    return tbptt.Controls(tf.constant(reset))


def test_windows_in_a_row_equal_one_long_window(kind, backend, jit):
    """Law 1, with the gradient uncut through the seam: outputs, final state, all gradients."""
    core = make_core(kind, backend=backend)
    reset = resets((0, 0), (2, 1), (4, 2))
    testing.check_continuation(core, make_inputs(STEPS, ROWS), controls=reset, jit_compile=jit)


def test_detached_state_passes_no_gradient(kind, backend, jit):
    """Law 2: a loss in the second window has none with respect to anything before it."""
    core = make_core(kind, backend=backend)
    testing.check_truncation(core, make_inputs(STEPS, ROWS), jit_compile=jit)


def test_reset_forgets_everything_before_it_nan_included(kind, backend, jit):
    """Law 3, at the first, a middle and the last step; other rows see nothing."""
    core = make_core(kind, backend=backend, learned=True)
    testing.check_reset(core, make_inputs(STEPS, ROWS), jit_compile=jit)


@pytest.mark.parametrize(
    ("kind", "backend", "jit"),
    [("lstm", backend, False) for backend in BACKENDS]
    + [("lstm", "fused", True), ("gru", "fused", False), ("gru", "scan", True)],
)
def test_learned_initial_state_gets_gradient_from_the_rows_that_reset(kind, backend, jit):
    """Law 3: as if exactly those rows had begun at their resets; no reset, no gradient."""
    core = make_core(kind, backend=backend, learned=True)
    inputs, state = make_inputs(STEPS, ROWS), random_state(core, ROWS)
    learned = [v for v in core.trainable_variables if "initial" in v.name]
    weights = tf.constant(np.random.default_rng(1).normal(size=[STEPS, ROWS, 1]), tf.float32)

    def gradient(run, jit):
        @tf.function(autograph=False, jit_compile=jit)
        def of_learned():
            with tf.GradientTape() as tape:
                loss = run()
            zero = tf.UnconnectedGradients.ZERO
            return tape.gradient(loss, learned, unconnected_gradients=zero)

        return of_learned()

    def loss_with(reset):
        return lambda: tf.reduce_sum(weights * core(inputs, state, reset)[0])

    def by_hand():  # row 0 begins at step 2, row 2 at step 4
        rows = [(0, 2), (2, 4)]
        return tf.add_n(
            [
                tf.reduce_sum(
                    weights[t:, b : b + 1] * core(inputs[t:, b : b + 1], core.initial_state(1))[0]
                )
                for b, t in rows
            ]
        )

    assert_close(gradient(loss_with(resets((2, 0), (4, 2))), jit), gradient(by_hand, False))
    for none in gradient(loss_with(resets()), jit):
        assert not np.any(none)


def test_permuting_rows_permutes_results_and_no_row_sees_another(kind, backend, jit):
    """Law 4."""
    core = make_core(kind, backend=backend)
    testing.check_rows(core, make_inputs(STEPS, ROWS), jit_compile=jit)


# T, what of, and where rows reset. The reference is cheap: it runs op by op, and once for all.
CASES = {
    "one-step": (1, "float64", [(0, 0)]),
    "carried": (7, "float64", []),
    "resets": (7, "float64", [(0, 0), (3, 1), (6, 2)]),  # at the first, a middle, the last step
    "everywhere": (7, "float64", [(t, b) for t in range(7) for b in range(ROWS)]),
    "long": (64, "float64", [(0, 0), (31, 1), (63, 2)]),
    "float32": (7, "float32", [(0, 0), (3, 1), (6, 2)]),
    "float32-one-step": (1, "float32", [(0, 0)]),
    "float32-carried": (7, "float32", []),
    "float32-everywhere": (7, "float32", [(t, b) for t in range(7) for b in range(ROWS)]),
    "float32-long": (64, "float32", [(0, 0), (31, 1), (63, 2)]),
    "bfloat16": (7, "bfloat16", [(0, 0), (3, 1), (6, 2)]),
}


@functools.cache
def result_of(kind, case, backend, keep="gates"):
    """Outputs, final state and all gradients."""
    steps, precision, places = CASES[case]
    options = {} if kind in ("own", "stack") else dict(keep=keep)
    if precision == "bfloat16":
        options["compute_dtype"] = tf.bfloat16
    dtype = tf.float64 if precision == "float64" else tf.float32
    core = make_core(kind, backend=backend, dtype=dtype, learned=True, **options)
    inputs, state = make_inputs(steps, ROWS, dtype), random_state(core, ROWS)
    reset = resets(*places, steps=steps) if places else None
    options = dict(training=True, seed=tbptt.make_seed(5))
    eager = backend == "reference"
    return run_with_gradients(core, inputs, state, reset, eager=eager, **options)


# A stack is made of the others, and an option changes the step alone: the rest is the cores' own.
ONLY_NATIVE = [case for case in CASES if case.startswith("float32-")]  # others have float64
PAIRS = [(kind, case) for kind in ("lstm", "gru") for case in CASES if case not in ONLY_NATIVE]
PAIRS += [("stack", "resets")]
PAIRS += [("own", case) for case in ("one-step", "resets", "long", "float32")]
PAIRS += [("lstm-everything", case) for case in ("one-step", "resets", "bfloat16")]
PAIRS += [(kind, "resets") for kind in OPTIONS if kind != "lstm-everything"]
KEEPING = "fused, keeping states"


@pytest.mark.parametrize(
    ("kind", "case", "other"),
    [
        (kind, case, other)
        for kind, case in PAIRS
        for other in ("scan", "fused", KEEPING)
        if other == "scan" or kind != "own"  # TensorFlow differentiates a user's cell
        # What is kept is the cores' own business, and not that of each option.
        if other != KEEPING
        or (kind, case) in (("lstm", "long"), ("gru", "long"), ("lstm-everything", "resets"))
    ]
    + [
        (kind, case, "native")
        for kind in ("lstm", "gru")
        for case in ("float32", "bfloat16", *ONLY_NATIVE)
    ]
    + [
        (f"{kind}-{option}-dropout", case, "native")
        for kind in ("lstm", "gru")
        for option in ("recurrent", "weight")
        for case in ("float32", "bfloat16")
    ]
    + [(kind, "float32-long", "native, keeping states") for kind in ("lstm", "gru")],
)
def test_backends_equal_reference(kind, case, other):
    """Law 5: outputs, final state, gradients of parameters, inputs and state."""
    backend, _, states = other.partition(", ")
    precision = CASES[case][1]
    assert_close(
        result_of(kind, case, backend, "states" if states else "gates"),
        result_of(kind, case, "reference"),
        precision,
    )


@pytest.mark.parametrize("kind", ["lstm", "gru", *OPTIONS])
def test_backends_equal_reference_where_no_initial_state_is_learned(kind):
    """Law 5 with the default initial state, zeros: with and without resets, for every option."""
    options = dict(training=True, seed=tbptt.make_seed(5))
    inputs = make_inputs(4, ROWS, tf.float64)
    names = ("reference", "scan", "fused", *([KEEPING] if kind == "lstm-everything" else []))
    for reset in (None, resets((0, 0), (2, 1), steps=4)):
        results = {}
        for name in names:
            backend, _, states = name.partition(", ")
            keep = "states" if states else "gates"
            core = make_core(kind, backend=backend, dtype=tf.float64, keep=keep)
            state = random_state(core, ROWS)
            results[name] = run_with_gradients(core, inputs, state, reset, eager=True, **options)
        for name in names[1:]:
            assert_close(results[name], results["reference"])


@pytest.mark.parametrize(  # all options of LSTM at once
    "kind", ["lstm-everything", "gru-recurrent-dropout", "gru-weight-dropout"]
)
def test_options_compiled_equal_reference(kind):
    """Law 5, compiled: every regulariser draws the same and computes the same under XLA."""
    core = make_core(kind, learned=True, dtype=tf.float64)
    inputs, state = make_inputs(7, ROWS, tf.float64), random_state(core, ROWS)
    reset = resets(*CASES["resets"][2], steps=7)
    options = dict(training=True, seed=tbptt.make_seed(5))
    assert_close(
        run_with_gradients(core, inputs, state, reset, jit_compile=True, **options),
        result_of(kind, "resets", "reference"),
    )


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_compiled_equals_plain(kind, backend):
    """Law 5, for the switch of compilation."""
    core = make_core(kind, backend=backend, learned=True)
    inputs, state = make_inputs(7, ROWS), random_state(core, ROWS)
    reset = resets((0, 0), (3, 1), (6, 2), steps=7)
    assert_close(
        run_with_gradients(core, inputs, state, reset, jit_compile=True),
        run_with_gradients(core, inputs, state, reset, jit_compile=False),
    )


def test_no_reset_costs_no_operation(kind, backend):
    """A stream that never resets pays nothing: there is no select in its program."""
    if backend == "native":
        pytest.skip("the kernels select by a pointer; tools.bench.native measures what resets cost")
    core = make_core(kind, backend=backend)
    inputs, state = make_inputs(4, ROWS), random_state(core, ROWS)

    def selects(reset):
        graph = tf.function(core, autograph=False).get_concrete_function(inputs, state, reset).graph
        functions = [graph, *(f.graph for f in graph._functions.values())]
        return sum(op.type == "SelectV2" for g in functions for op in g.get_operations())

    assert selects(tbptt.Controls()) == 0
    assert selects(resets(steps=4)) > 0


@pytest.mark.parametrize("backend", ["reference", "scan"])
def test_unroll_takes_a_bare_function(backend):
    outputs, final = tbptt.unroll(
        lambda x, s: (x * s, s + x), tf.ones([3, 2]), tf.constant([1.0, 2.0]), backend=backend
    )
    assert outputs.numpy().tolist() == [[1, 2], [2, 3], [3, 4]]
    assert final.numpy().tolist() == [4, 5]


SCALED = ("lstm", "gru", "own", "lstm-everything")  # one for each engine of every backend


def gradient_scales(steps, zero=()):
    """`[T, B]`, from 0.5 to 1.5; 0 at these (t, b)."""
    scale = np.random.default_rng(23).uniform(0.5, 1.5, [steps, ROWS]).astype(np.float32)
    for place in zero:
        scale[place] = 0
    return tf.constant(scale)


@functools.cache
def scaled_result(kind, backend, jit=False, keep="gates"):
    """With gradient scales, resets and, unless states are kept, an advance."""
    options = {} if kind == "own" else dict(keep=keep)
    core = make_core(kind, backend=backend, dtype=tf.float64, learned=True, **options)
    inputs, state = make_inputs(7, ROWS, tf.float64), random_state(core, ROWS)
    return run_with_gradients(
        core,
        inputs,
        state,
        tbptt.Controls(
            resets((0, 0), (3, 1), (6, 2), steps=7).reset,
            gradient_scales(7, [(4, 0), (2, 2)]),
            tf.constant(5) if keep == "gates" else None,
        ),
        jit_compile=jit,
        eager=backend == "reference",
        **({} if kind == "own" else dict(training=True, seed=tbptt.make_seed(5))),
    )


@pytest.mark.parametrize(
    ("kind", "other", "jit"),
    [
        (kind, other, jit)
        for kind in SCALED
        for other in ("scan", "fused")
        for jit in (False, True)
        if (kind, other) != ("own", "fused")
        and (not jit or (kind, other) in (("lstm", "fused"), ("gru", "fused"), ("own", "scan")))
    ],
)
def test_gradient_scale_and_advance_equal_reference(kind, other, jit):
    """Law 5 for what truncation asks for."""
    assert_close(scaled_result(kind, other, jit), scaled_result(kind, "reference"))


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_gradient_scale_while_keeping_states(kind):
    assert_close(
        scaled_result(kind, "fused", keep="states"),
        scaled_result(kind, "reference", keep="states"),
    )


def test_scale_0_is_a_detached_state(kind, backend):
    """Law 2 inside a window: scale 0 at step t equals two windows with a constant between."""
    core = make_core(kind, backend=backend)
    inputs, state = make_inputs(STEPS, ROWS), random_state(core, ROWS)
    cut = np.ones([STEPS, ROWS], np.float32)
    cut[2] = 0

    def in_two(x, s, controls):
        first, s = core(x[:2], s)
        second, s = core(x[2:], detach(s))
        return tf.concat([first, second], 0), s

    in_two.trainable_variables = core.trainable_variables
    assert_close(
        run_with_gradients(core, inputs, state, tbptt.Controls(gradient_scale=tf.constant(cut))),
        run_with_gradients(in_two, inputs, state),
    )


def check_scale_0_of_native():
    """An infinite gradient of the second output stays at the second step; without a scale not."""
    core = make_core("lstm", backend="native")
    inputs, state = make_inputs(2, ROWS), random_state(core, ROWS)
    for last, stays in ((0.0, True), (1.0, False)):
        scale = tf.constant([[1.0] * ROWS, [last] * ROWS])
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs, _ = core(inputs, state, tbptt.Controls(gradient_scale=scale))
            loss = np.inf * tf.reduce_sum(outputs[1])
        assert np.all(np.isfinite(tape.gradient(loss, inputs)[0])) == stays


def test_scale_0_stops_gradients_that_are_not_finite(backend):
    scale = tf.constant([[1.0], [0.0]])
    if backend == "native":
        check_scale_0_of_native()
        return
    if backend == "fused":
        factor = tbptt.state.scale_rows(scale[1], tf.constant([np.inf]))
        assert factor.numpy().tolist() == [0.0]
        return
    state = tf.ones([1])
    x = tf.constant([[1.0], [0.0]])  # an infinite slope at the second step
    with tf.GradientTape() as tape:
        tape.watch(state)
        outputs, _ = tbptt.unroll(
            lambda x, s: (s / x, s), x, state, tbptt.Controls(gradient_scale=scale), backend=backend
        )
        loss = outputs[1, 0]
    assert tape.gradient(loss, state).numpy().tolist() == [0.0]


@pytest.mark.parametrize("steps", [1, 4, STEPS])
def test_advance_takes_the_state_after_so_many_steps(kind, backend, steps):
    """And as a constant; the outputs are those of the whole window."""
    core = make_core(kind, backend=backend)
    inputs, state = make_inputs(STEPS, ROWS), random_state(core, ROWS)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs, reached = core(inputs, state, tbptt.Controls(advance=tf.constant(steps)))
        loss = tf.add_n([tf.reduce_sum(part) for part in tf.nest.flatten(reached)])
    assert tape.gradient(loss, inputs) is None
    assert_close(outputs, core(inputs, state)[0])
    assert_close(reached, core(inputs[:steps], state)[1])


def test_random_cuts_are_unbiased():
    """Tallec & Ollivier (2017): the mean over all cuts, by their probability, is the gradient."""
    core = make_core("lstm", dtype=tf.float64)
    inputs, state = make_inputs(4, 1, tf.float64), random_state(core, 1)
    probability = 0.4

    @tf.function(autograph=False)
    def gradient(scale):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(core(inputs, state, tbptt.Controls(gradient_scale=scale))[0] ** 2)
        return tape.gradient(loss, core.trainable_variables)

    mean = [np.zeros(v.shape) for v in core.trainable_variables]
    for cuts in itertools.product([True, False], repeat=3):
        scale = np.where([False, *cuts], 0.0, 1 / (1 - probability)).astype(np.float64)
        weight = np.prod(np.where(cuts, probability, 1 - probability))
        for total, part in zip(mean, gradient(tf.constant(scale[:, None])), strict=True):
            total += weight * part.numpy()
    assert_close(mean, [g.numpy() for g in gradient(tf.ones([4, 1], tf.float64))])


def test_keeping_states_refuses_an_advance():
    core = make_core("lstm", keep="states")
    with pytest.raises(ValueError, match="Use keep='gates', or windows that advance by"):
        core(make_inputs(4, ROWS), random_state(core, ROWS), tbptt.Controls(advance=tf.constant(2)))
