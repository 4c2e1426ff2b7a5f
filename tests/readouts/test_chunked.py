"""The chunked softmax against the whole one: loss, every gradient, and what is in memory."""

import numpy as np
import pytest
import tensorflow as tf

import tbptt
from tbptt.readouts.chunked import POSITIONS, softmax_loss
from tbptt.testing import assert_close

ROWS, HIDDEN, VOCABULARY = 70, 5, 22


def make(dtype=tf.float32, rows=ROWS):
    rng = np.random.default_rng(0)
    hidden, w, b = (
        tf.constant(rng.normal(size=shape), dtype)
        for shape in ([rows, HIDDEN], [VOCABULARY, HIDDEN], [VOCABULARY])
    )
    return hidden, w, b, tf.constant(rng.integers(0, VOCABULARY, [rows]), tf.int32)


def whole(hidden, w, b, targets):
    return tbptt.cross_entropy(hidden @ tf.transpose(w) + b, targets)


def with_gradients(loss, hidden, w, b, targets, jit=False, weight=None):
    """Loss, and the gradients of a weighted sum of it."""
    weight = tf.linspace(-1.0, 2.0, targets.shape[0]) if weight is None else weight

    def run(hidden, w, b, targets):
        with tf.GradientTape() as tape:
            tape.watch([hidden, w, b])
            value = loss(hidden, w, b, targets)
            total, _ = tbptt.losses.weighted_sum(value, weight)
        return value, tape.gradient(total, [hidden, w, b])

    return tf.function(run, autograph=False, jit_compile=jit)(hidden, w, b, targets)


@pytest.mark.parametrize(
    ("chunk", "dtype"),  # 5 and 7 do not come out even
    [*((chunk, tf.float32) for chunk in (1, 5, 7, 11, 22, 100)), (7, tf.float64)],
)
def test_chunks_equal_the_whole(chunk, dtype, jit):
    inputs = make(dtype)
    expected = with_gradients(whole, *inputs)
    actual = with_gradients(lambda *a: softmax_loss(*a, chunk=chunk), *inputs, jit=jit)
    assert_close(actual, expected)


def test_chunks_equal_the_whole_without_a_function():
    inputs = make()
    assert_close(softmax_loss(*inputs, chunk=7), whole(*inputs))
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(inputs[:3])
        ours, expected = softmax_loss(*inputs, chunk=7), whole(*inputs)
    assert_close(tape.gradient(ours, inputs[:3]), tape.gradient(expected, inputs[:3]))


@pytest.mark.parametrize(("rows", "jit"), [(1, False), (ROWS, False), (POSITIONS, True)])
def test_only_the_first_count_rows_count(rows, jit):
    """Whatever the count, as data; and what stands in the rows after it does not matter."""
    hidden, w, b, targets = make(rows=rows)

    def of_count(loss, jit):
        """Returns a function of count and inputs: one program for every count."""
        return tf.function(
            lambda count, *inputs: with_gradients(lambda *a: loss(*a, count), *inputs),
            autograph=False, jit_compile=jit,
        )  # fmt: skip

    definition = of_count(lambda *a: tf.where(tf.range(rows) < a[-1], whole(*a[:-1]), 0.0), False)
    chunked = of_count(lambda *a: softmax_loss(*a[:-1], chunk=7, count=a[-1]), jit)
    for count in sorted({0, 1, rows // 2, POSITIONS, rows}):
        if count > rows:
            continue
        spoilt = tf.where(tf.range(rows)[:, None] < count, hidden, np.nan)
        expected_loss, expected = definition(tf.constant(count), hidden, w, b, targets)
        loss, gradients = chunked(tf.constant(count), spoilt, w, b, targets)
        assert_close(loss, expected_loss)
        assert_close(gradients, expected)


def test_a_count_is_data_and_traces_once(jit):
    inputs = make()
    run = tf.function(
        lambda count: softmax_loss(*inputs, chunk=7, count=count), autograph=False, jit_compile=jit
    )
    for count in (3, 70, 0):
        scored = run(tf.constant(count)).numpy()
        assert np.count_nonzero(scored) == count
    assert run.experimental_get_tracing_count() == 1


def test_a_position_of_weight_0_cannot_spoil_the_others(jit):
    hidden, w, b, targets = make()
    weight = tf.constant(np.arange(ROWS) % 3, tf.float32)
    spoilt = tf.where(weight[:, None] > 0, hidden, np.nan)
    _, expected = with_gradients(whole, hidden, w, b, targets, weight=weight)
    run = lambda *a: softmax_loss(*a, chunk=7)  # noqa: E731
    loss, actual = with_gradients(run, spoilt, w, b, targets, jit=jit, weight=weight)
    assert np.isnan(loss[0])  # it was there
    assert_close(actual, expected)


def test_not_a_number_that_counts_is_seen(jit):
    hidden, w, b, targets = make()
    spoilt = tf.concat([hidden[:-1], np.nan * hidden[-1:]], axis=0)
    _, gradients = with_gradients(
        lambda *a: softmax_loss(*a, chunk=7), spoilt, w, b, targets, jit=jit
    )
    assert all(np.isnan(gradient).any() for gradient in gradients)


def test_large_logits_do_not_overflow(jit):
    hidden, w, b, targets = make()
    inputs = (100.0 * hidden, w, b, targets)
    loss, gradients = with_gradients(lambda *a: softmax_loss(*a, chunk=7), *inputs, jit=jit)
    expected, _ = with_gradients(whole, *inputs)
    assert_close(loss, expected)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_half_precision_is_summed_in_float32(jit):
    """bfloat16 holds 8 bits; the sum over the vocabulary is exact to float32 all the same."""
    inputs = [tf.cast(part, tf.bfloat16) for part in make()[:3]]
    zero = [tf.zeros_like(inputs[0]), *inputs[1:2], tf.zeros_like(inputs[2])]
    loss, gradients = with_gradients(
        lambda *a: softmax_loss(*a, chunk=7), *zero, make()[3], jit=jit
    )
    assert_close(loss, tf.fill([ROWS], tf.math.log(float(VOCABULARY))))
    assert {gradient.dtype for gradient in gradients} == {tf.bfloat16}


def largest(function, *inputs):
    """Elements of the largest tensor in a traced function and all that it calls."""
    graph = function.get_concrete_function(*inputs).graph.as_graph_def(add_shapes=True)
    nodes = [*graph.node, *(node for part in graph.library.function for node in part.node_def)]
    shapes = [shape for node in nodes for shape in node.attr["_output_shapes"].list.shape]
    assert len(shapes) > 100
    return max(
        np.prod([dim.size for dim in shape.dim], dtype=np.int64)
        for shape in shapes
        if not shape.unknown_rank
    )


@pytest.mark.parametrize("dense", [False, True], ids=["chunked", "dense"])
def test_logits_never_exist_whole(dense):
    """In the whole graph, forward and backward, nothing has as many elements as `[N, V]`."""
    rows, vocabulary, chunk = 400, 3000, 100
    hidden, w = tf.zeros([rows, 20]), tf.zeros([vocabulary, 20])
    b, targets = tf.zeros([vocabulary]), tf.zeros([rows], tf.int32)

    @tf.function(autograph=False)
    def run(hidden, w, b, targets):
        loss = whole if dense else lambda *a: softmax_loss(*a, chunk=chunk)
        return with_gradients(loss, hidden, w, b, targets)

    if dense:  # the walk does find what is there
        assert largest(run, hidden, w, b, targets) == rows * vocabulary
    else:
        assert largest(run, hidden, w, b, targets) == max(rows * chunk, vocabulary * 20)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(chunk=0), r"chunk \(0\) must be at least 1.* Use 2048"),
        (dict(hidden_size=0), r"hidden_size \(0\) must be at least 1"),
        (dict(vocabulary_size=0), r"vocabulary_size \(0\) must be at least 1"),
        (dict(table=tf.Variable(tf.zeros([3, 4]))), r"table has shape \[3, 4\], but must be \[9"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    settings = dict(hidden_size=4, vocabulary_size=9) | settings
    with pytest.raises(ValueError, match=message):
        tbptt.ChunkedSoftmax(seed=tbptt.make_seed(0), **settings)
