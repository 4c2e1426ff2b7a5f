"""Law 9: evaluation changes nothing, scores every target once, and does not depend on T."""

import numpy as np
import pytest
import tensorflow as tf

import tbptt
from tbptt import optimizers
from tbptt.testing import assert_same_bits
from tests.conftest import LOOPS, make_core

VOCABULARY = 7
TOKENS = np.random.default_rng(2).integers(0, VOCABULARY, [54])


def make_model(kind="lstm", backend="auto"):
    core = make_core(kind, backend=backend)
    return tbptt.LanguageModel(VOCABULARY, 3, core, seed=tbptt.make_seed(1), dropout_rate=0.5)


def stream(rows, window_length):
    return tbptt.ContiguousStream(
        TOKENS, rows=rows, window_length=window_length, vocabulary_size=VOCABULARY, tail="pad"
    )


def evaluate(model, rows, window_length, jit=False, windows_per_call=3):
    part = stream(rows, window_length)
    return tbptt.Evaluator(model, part, windows_per_call=windows_per_call, jit_compile=jit)


@pytest.mark.parametrize(("kind", "backend", "jit"), LOOPS)
def test_every_target_is_scored_once_whatever_the_window(kind, backend, jit):
    """One row: 53 targets by windows of 1, 5 and 60 equal the whole text at once."""
    model = make_model(kind, backend)
    window = tbptt.Window(tf.constant(TOKENS[:-1, None]), tf.constant(TOKENS[1:, None]))
    logits, _ = model(window.inputs, model.initial_state(1))
    expected = float(tf.reduce_sum(tbptt.cross_entropy(logits, window.targets)))
    for window_length in (5, 60) if backend == "reference" or jit else (1, 5, 60):
        evaluation = evaluate(model, 1, window_length, jit)()
        assert evaluation.weight_sum == len(TOKENS) - 1
        assert np.isclose(evaluation.loss_sum, expected, rtol=1e-5)


@pytest.mark.parametrize("rows", [2, 4, 53])
def test_rows_with_ragged_ends_score_every_target_once(rows):
    """Each row is its own stretch of the text, from an empty state."""
    model = make_model()
    length = -(-(len(TOKENS) - 1) // rows)
    expected = 0.0
    for start in range(0, len(TOKENS) - 1, length):
        ids = TOKENS[start : start + length + 1]
        window = tbptt.Window(tf.constant(ids[:-1, None]), tf.constant(ids[1:, None]))
        logits, _ = model(window.inputs, model.initial_state(1))
        expected += float(tf.reduce_sum(tbptt.cross_entropy(logits, window.targets)))
    evaluation = evaluate(model, rows, 5)()
    assert evaluation.weight_sum == len(TOKENS) - 1
    assert np.isclose(evaluation.loss_sum, expected, rtol=1e-5)


def test_figures():
    evaluation = tbptt.Evaluation({"loss": (8.0, 4.0), "accuracy": (3.0, 4.0), "none": (0.0, 0.0)})
    assert evaluation.loss == 2.0
    assert evaluation.metrics["accuracy"] == 0.75
    assert np.isnan(evaluation.metrics["none"])
    assert np.isclose(evaluation.perplexity, np.exp(2.0))
    assert np.isclose(evaluation.bits, 2.0 / np.log(2.0))


def test_evaluation_stream_that_does_not_continue_is_refused():
    class Swapped:
        rows, window_length, windows_per_epoch, epochs_alike = 2, 5, 6, True

        def windows(self, cursor, count):
            windows, cursor = stream(2, 5).windows(cursor, count)
            windows.offset[1:] = windows.offset[1:, ::-1].copy()
            return windows, cursor

    with pytest.raises(tbptt.ContinuityError, match="does not continue"):
        tbptt.Evaluator(make_model(), Swapped(), jit_compile=False)()


@pytest.mark.parametrize(("rows", "window_length"), [(1, 3), (1, 20), (3, 5), (4, 2)])
def test_figure_of_whole_documents_depends_on_neither_rows_nor_windows(rows, window_length):
    """Law 9 where rows start anew inside windows: each document by itself, by hand."""
    model = make_model()
    documents = tbptt.Segments(TOKENS, np.cumsum([3, 9, 2, 5, len(TOKENS) - 19]))
    expected = 0.0
    for begin, end in zip([0, *documents.ends[:-1]], documents.ends, strict=True):
        ids = tf.constant(TOKENS[begin:end, None], tf.int32)
        logits, _ = model(ids[:-1], model.initial_state(1))
        expected += float(tf.reduce_sum(tbptt.cross_entropy(logits, ids[1:])))
    stream = tbptt.DocumentStream(
        documents,
        rows=rows,
        window_length=window_length,
        vocabulary_size=VOCABULARY,
        shuffle=False,
        whole=True,
    )
    evaluation = tbptt.Evaluator(model, stream, jit_compile=False)()
    assert evaluation.weight_sum == len(TOKENS) - len(documents)
    assert np.isclose(evaluation.loss_sum, expected, rtol=1e-5)


def test_many_evaluators_in_one_process_are_no_retracing(monkeypatch):
    """TensorFlow counts traces by a function's code: it would warn from the fifth one on."""
    warnings = []
    monkeypatch.setattr(tf.get_logger(), "warning", lambda text, *_: warnings.append(text))
    core = tbptt.Recurrent(lambda x, s: (x, s), lambda rows: tf.zeros([rows, 3]), output_size=3)
    model = tbptt.LanguageModel(VOCABULARY, 3, core, seed=tbptt.make_seed(1))
    for _ in range(6):
        evaluator = evaluate(model, 1, 60)
        evaluator()
        assert evaluator.traces == 1
    assert not warnings


def learn_by_hand(model, part, rate):
    """Dynamic evaluation in six lines: score a window, then descend; -> the sum of the losses."""
    state, total = model.initial_state(1), 0.0
    for start in range(0, len(TOKENS) - 1, part.window_length):
        ids = TOKENS[start : start + part.window_length + 1, None]
        with tf.GradientTape() as tape:
            logits, state = model(tf.constant(ids[:-1]), state)
            step_losses = tbptt.cross_entropy(logits, tf.constant(ids[1:]))
            loss = tf.reduce_mean(step_losses)
        total += float(tf.reduce_sum(step_losses))
        gradients = tape.gradient(loss, model.trainable_variables)
        for parameter, gradient in zip(model.trainable_variables, gradients, strict=True):
            parameter.assign_sub(rate * tf.convert_to_tensor(gradient))
    return total


@pytest.mark.parametrize("jit", [False, True])
def test_dynamic_evaluation_scores_a_window_before_it_learns_it_and_forgets_in_the_end(jit):
    model, twin, part = make_model(), make_model(), stream(1, 5)
    evaluator = tbptt.Evaluator(
        model, part, windows_per_call=4, optimizer=optimizers.sgd(0.5), jit_compile=jit
    )
    before = [parameter.numpy() for parameter in model.trainable_variables]
    first, second = evaluator(), evaluator()
    for parameter, value in zip(model.trainable_variables, before, strict=True):
        assert_same_bits(parameter, value)
    assert first == second
    assert evaluator.traces == 1
    static = tbptt.Evaluator(model, part, windows_per_call=4, jit_compile=jit)()
    expected = learn_by_hand(twin, part, 0.5)
    assert first.weight_sum == static.weight_sum == len(TOKENS) - 1
    assert np.isclose(first.loss_sum, expected, rtol=1e-5)
    assert not np.isclose(first.loss_sum, static.loss_sum, rtol=1e-3)


def test_dynamic_evaluation_forgets_what_it_learned_when_it_is_interrupted(monkeypatch):
    model = make_model()
    evaluator = tbptt.Evaluator(
        model, stream(1, 5), windows_per_call=4, optimizer=optimizers.adam(0.1),
        jit_compile=False,
    )  # fmt: skip
    expected = evaluator()
    take, calls = evaluator._feed.take, []

    def interrupted(cursor, count):
        calls.append(count)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return take(cursor, count)

    before = [parameter.numpy() for parameter in model.trainable_variables]
    monkeypatch.setattr(evaluator._feed, "take", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluator()
    for parameter, value in zip(model.trainable_variables, before, strict=True):
        assert_same_bits(parameter, value)
    monkeypatch.undo()
    assert evaluator() == expected


def test_evaluation_of_nothing_says_so():
    with pytest.raises(ValueError, match="Nothing was scored: every weight of the stream is 0"):
        _ = tbptt.Evaluation({"loss": (0.0, 0.0)}).loss
