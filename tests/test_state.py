"""Pure functions on state nests."""

import numpy as np
import tensorflow as tf

import tbptt
from tbptt import state as states
from tbptt.testing import assert_same_bits

OLD = {"h": tf.constant([[1.0, 2.0], [np.nan, 4.0]]), "n": (tf.constant([5, 6], tf.int64),)}
NEW = {"h": tf.constant([[7.0, 8.0], [9.0, 0.0]]), "n": (tf.constant([0, 1], tf.int64),)}


def test_select_goes_row_by_row_and_keeps_nan_out():
    chosen = states.select(tf.constant([False, True]), NEW, OLD)
    assert_same_bits(chosen["h"], tf.constant([[1.0, 2.0], [9.0, 0.0]]))
    assert chosen["n"][0].numpy().tolist() == [5, 1]


def test_zeros_like_keeps_structure_and_dtypes():
    zeros = states.zeros_like(OLD)
    assert zeros["h"].numpy().tolist() == [[0, 0], [0, 0]]
    assert zeros["n"][0].dtype == tf.int64


def test_take_rows():
    taken = states.take_rows(OLD, [1, 1, 0])
    assert taken["n"][0].numpy().tolist() == [6, 6, 5]


def test_detach_keeps_the_bits():
    assert_same_bits(states.detach(OLD), OLD)


def test_named_leaves_of_a_stack():
    state = (tbptt.LSTMState(tf.zeros([1]), tf.ones([1])), tbptt.GRUState(tf.zeros([1])))
    assert list(states.named_leaves(state)) == ["0/hidden", "0/cell", "1/hidden"]
