"""An export in the place of its model: the same text, beams and sessions."""

import io

import numpy as np
import pytest
import tensorflow as tf

from tbptt.serving.beam import beam_search
from tbptt.serving.exports import ExportedModel, ExportError, open_export
from tbptt.serving.sampling import Sampler, Sampling
from tbptt.serving.streamer import Streamer
from tbptt.testing import assert_close
from tests.serving.exports.conftest import VOCABULARY
from tools import sample


@pytest.fixture
def step_by_step():
    yield
    tf.config.run_functions_eagerly(False)


def drawn_and_searched(model):
    """Five samples of one program, and the beam of the most probable texts."""
    sampler, seeds = Sampler(model, most=9, jit_compile=False), [[0, k] for k in range(5)]
    streamer = Streamer(model, chunk_sizes=[1], batch_sizes=[3], jit_compile=False)
    beams = beam_search(streamer, [1, 2, 3, 4], 4, width=3)
    return sampler.sample([1, 5], 20, seeds), beams


@pytest.fixture(scope="module")
def expected(model):
    return drawn_and_searched(model)


@pytest.mark.parametrize("kind", ["saved_model", "litert"])
def test_an_export_writes_what_its_model_writes(expected, exports, kind, step_by_step):
    exported = ExportedModel(open_export(exports[kind]))
    with pytest.raises(ExportError, match="cannot be a part of a TensorFlow function"):
        Sampler(exported, jit_compile=False).sample([1], 2, [[0, 1]])
    tf.config.run_functions_eagerly(True)
    drawn, beams = drawn_and_searched(exported)
    assert np.array_equal(drawn, expected[0])
    assert [one.tokens for one in beams] == [one.tokens for one in expected[1]]
    scores = [np.float32([one.score for one in each]) for each in (beams, expected[1])]
    assert_close(*scores)


def test_the_command_reads_an_export(model, exports, step_by_step):
    run = sample.open_run(exports["saved_model"])
    assert sample.vocabulary_of(run) == VOCABULARY
    texts = []
    for each in (run.model, model):
        out = io.StringIO()
        sample.write_samples(each, VOCABULARY, "ab", 12, out, sampling=Sampling())
        texts.append(out.getvalue())
    assert texts[0] == texts[1]
