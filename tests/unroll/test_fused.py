"""`fused.generic.run` and `recompute.run` with functions that are not our layers' own."""

import numpy as np
import pytest
import tensorflow as tf

from tbptt.testing import assert_close
from tbptt.types import Controls
from tbptt.unroll import fused, recompute, unroll

STEPS, ROWS, SIZE = 5, 2, 3


def random(*shape, seed):
    return tf.constant(0.5 * np.random.default_rng(seed).normal(size=shape))


X, STATE = random(STEPS, ROWS, SIZE, seed=0), random(ROWS, SIZE, seed=1)
MATRICES = {"u": random(SIZE, SIZE, seed=2), "v": random(SIZE, SIZE, seed=3)}
RESET = tf.constant(np.eye(STEPS, ROWS, dtype=bool))


def twice(x, state, vectors, matmul):
    """Uses `u` twice in a step, and `v` once or, where `vectors` is empty, not at all."""
    hidden = tf.tanh(x + matmul(state, "u"))
    if vectors:
        hidden = hidden * vectors["gain"] + matmul(hidden, "v")
    hidden = tf.tanh(matmul(hidden, "u"))
    return hidden, hidden


@pytest.mark.parametrize("vectors", [{}, {"gain": random(SIZE, seed=4)}], ids=["u", "u, v, u"])
def test_a_matrix_may_be_used_twice_or_not_at_all(vectors):
    """Values and all gradients are those of the reference, which TensorFlow differentiates."""
    watched = [X, STATE, *tf.nest.flatten(vectors), *MATRICES.values()]

    def gradients(run):
        with tf.GradientTape() as tape:
            tape.watch(watched)
            outputs, last = run()
            loss = tf.reduce_sum(outputs**2) + tf.reduce_sum(tf.sin(last))
        zero = tf.UnconnectedGradients.ZERO
        return outputs, last, tape.gradient(loss, watched, unconnected_gradients=zero)

    def cell(x, state):
        return twice(x, state, vectors, lambda a, name: a @ MATRICES[name])

    controls = Controls(RESET)
    assert_close(
        gradients(lambda: fused.generic.run(twice, X, STATE, controls, None, vectors, MATRICES)),
        gradients(lambda: unroll(cell, X, STATE, controls, backend="reference")),
    )


def test_a_step_that_closes_over_a_parameter_is_refused():
    """It would get no gradient, or a wrong one."""
    variable, tensor = tf.Variable(random(SIZE, seed=5), name="gain"), random(SIZE, seed=6)

    def step_with(outside):
        def step(x, state, vectors, matmul):
            hidden = tf.tanh(outside * x + matmul(state, "u"))
            return hidden, hidden

        return step

    def segment_with(outside):
        return lambda x, state, weights: (x * outside, state)

    for outside, name in ((variable, "gain:0"), (tensor, r"a float64 tensor of shape \[3\]")):
        with pytest.raises(ValueError, match=f"reads {name} from outside, which would get no"):
            fused.generic.run(step_with(outside), X, STATE, Controls(), None, {}, MATRICES)
        with pytest.raises(ValueError, match=f"reads {name} from outside, which would get no"):
            recompute.run(segment_with(outside), X, STATE, ())
