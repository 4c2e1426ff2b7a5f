"""Parameters on disk."""

import numpy as np
import pytest

import tbptt
from tests.conftest import assert_same_bits
from tests.test_models import make


def test_parameters_come_back_to_the_bit(tmp_path):
    path = tmp_path / "parameters.npz"
    model, other = make(), make()
    for variable in other.trainable_variables:
        variable.assign_add(np.ones(variable.shape, np.float32))
    tbptt.save_parameters(path, model)
    tbptt.load_parameters(path, other)
    assert_same_bits(other.trainable_variables, model.trainable_variables)
    assert [file.name for file in tmp_path.iterdir()] == ["parameters.npz"]


def test_names_are_paths():
    assert list(tbptt.named_parameters(make())) == [
        "core.cores.0.b",
        "core.cores.0.w_h",
        "core.cores.0.w_x",
        "core.cores.1.b",
        "core.cores.1.b_h",
        "core.cores.1.w_h",
        "core.cores.1.w_x",
        "embedding.table",
        "readout.b",
        "readout.w",
    ]


def test_parameters_of_another_model_are_refused_and_nothing_changes(tmp_path):
    path = tmp_path / "parameters.npz"
    tbptt.save_parameters(path, make(tied=True))
    model = make()
    before = [variable.numpy() for variable in model.trainable_variables]
    with pytest.raises(ValueError, match=r"another model\. b: \[9\] in the file, nothing in the m"):
        tbptt.load_parameters(path, model)
    assert_same_bits(model.trainable_variables, before)
