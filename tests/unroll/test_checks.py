"""What `unroll` refuses, and what it says."""

import pytest
import tensorflow as tf

import tbptt

X = tf.ones([4, 2, 3])
STATE = tf.zeros([2, 3])


def total(x, state):
    return x + state, x + state


def test_unknown_backend():
    with pytest.raises(ValueError, match=r"backend \('fast'\) must be one of auto, reference, "):
        tbptt.unroll(total, X, STATE, backend="fast")


def test_state_of_another_batch_size():
    with pytest.raises(ValueError, match=r"state has shape \[5, 3\], but must be \[2, any\]"):
        tbptt.unroll(total, X, tf.zeros([5, 3]))


def test_reset_of_another_shape():
    with pytest.raises(ValueError, match=r"reset has shape \[2, 4\], but must be \[4, 2\]"):
        tbptt.unroll(total, X, STATE, tbptt.Controls(tf.zeros([2, 4], tf.bool)))


def test_reset_of_another_dtype():
    with pytest.raises(TypeError, match="reset has dtype float32, but must be bool"):
        tbptt.unroll(total, X, STATE, tbptt.Controls(tf.zeros([4, 2])))


def test_initial_state_unlike_the_state():
    with pytest.raises(ValueError, match=r"initial_state has a part float32\[2, 4\] where float32"):
        tbptt.unroll(
            total,
            X,
            STATE,
            tbptt.Controls(tf.zeros([4, 2], tf.bool)),
            initial_state=tf.zeros([2, 4]),
        )


def test_cell_that_changes_its_state():
    with pytest.raises(ValueError, match="the state a cell returns"):
        tbptt.unroll(lambda x, s: (x, tf.cast(s, tf.float64)), X, STATE)


def test_unknown_window_length():
    run = tf.function(
        lambda x: tbptt.unroll(total, x, STATE),
        input_signature=[tf.TensorSpec([None, 2, 3])],
        autograph=False,
    )
    with pytest.raises(ValueError, match="T and B must be known"):
        run(X)
