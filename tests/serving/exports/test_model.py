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


@pytest.mark.parametrize("kind", ["saved_model", "litert", "stablehlo"])
def test_an_export_writes_what_its_model_writes(model, exports, kind, step_by_step):
    """Five samples of one program, and the beam of the most probable texts."""
    exported = ExportedModel(open_export(exports[kind]))
    with pytest.raises(ExportError, match="cannot be a part of a TensorFlow function"):
        Sampler(exported, jit_compile=False).sample([1], 2, [[0, 1]])
    found = []
    for each in (model, exported):
        tf.config.run_functions_eagerly(each is exported)
        drawn = Sampler(each, most=9, jit_compile=False).sample(
            [1, 5, 2], 20, [[0, k] for k in range(5)]
        )
        streamer = Streamer(each, chunk_sizes=[3, 1], batch_sizes=[1, 3], jit_compile=False)
        found.append((drawn, beam_search(streamer, [1, 2, 3, 4], 4, width=3)))
    (drawn, beams), (by_export, beams_by_export) = found
    assert np.array_equal(drawn, by_export)
    assert [one.tokens for one in beams] == [one.tokens for one in beams_by_export]
    scores = [np.float32([one.score for one in each]) for each in (beams, beams_by_export)]
    assert_close(*scores)


def test_the_command_reads_an_export(model, exports, step_by_step):
    run = sample.open_run(exports["saved_model"])
    assert sample.vocabulary_of(run) == VOCABULARY
    texts = []
    for each in (run.model, model):
        out = io.StringIO()
        sample.write_samples(each, VOCABULARY, "abc", 20, out, sampling=Sampling())
        texts.append(out.getvalue())
    assert texts[0] == texts[1]
