"""Parameters on disk."""

import resource
import sys

import numpy as np
import pytest
import safetensors.numpy

import tbptt
from tbptt.checkpoint.parameters import SUFFIXES, write_parameters
from tbptt.testing import assert_same_bits
from tests.test_models import make


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_parameters_come_back_to_the_bit(tmp_path, suffix):
    path = tmp_path / f"parameters{suffix}"
    model, other = make(), make()
    for variable in other.trainable_variables:
        variable.assign_add(np.ones(variable.shape, np.float32))
    tbptt.save_parameters(path, model)
    tbptt.load_parameters(path, other)
    assert_same_bits(other.trainable_variables, model.trainable_variables)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


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
    with pytest.raises(
        ValueError, match=r"another model\. readout.w: nothing in the file, float32 \[4, 9\] in"
    ):
        tbptt.load_parameters(path, model)
    assert_same_bits(model.trainable_variables, before)


def test_files_are_what_others_read(tmp_path):
    """NumPy and safetensors themselves find every parameter by name."""
    model = make()
    for path in (tmp_path / "p.npz", tmp_path / "p.safetensors"):
        tbptt.save_parameters(path, model)
    of_numpy = dict(np.load(tmp_path / "p.npz", allow_pickle=False))
    of_safetensors = safetensors.numpy.load_file(tmp_path / "p.safetensors")
    for name, variable in tbptt.named_parameters(model).items():
        assert_same_bits(of_numpy.pop(name), variable)
        assert_same_bits(of_safetensors.pop(name), variable)
    assert not of_numpy
    assert not of_safetensors


def test_what_others_have_written_is_read(tmp_path):
    """Numbers of another width are converted, of another kind refused."""
    model = make()
    values = {name: 2.0 * v.numpy() for name, v in tbptt.named_parameters(model).items()}
    wide = {name: value.astype(np.float64) for name, value in values.items()}
    np.savez_compressed(tmp_path / "wide.npz", **wide)
    tbptt.load_parameters(tmp_path / "wide.npz", model)
    assert_same_bits(model.trainable_variables, list(values.values()))
    wide["readout.b"] = wide["readout.b"].astype(np.complex128)
    np.savez(tmp_path / "wide.npz", **wide)
    with pytest.raises(ValueError, match=r"readout\.b: complex128 \[9\] in the file, float32"):
        tbptt.load_parameters(tmp_path / "wide.npz", model)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("damage", ["empty", "cut", "other"])
def test_a_damaged_file_is_told(tmp_path, suffix, damage):
    path = tmp_path / f"parameters{suffix}"
    tbptt.save_parameters(path, make())
    content = path.read_bytes()
    path.write_bytes(
        {"empty": b"", "cut": content[: len(content) // 2], "other": b"x" * 99}[damage]
    )
    with pytest.raises(ValueError, match="cannot be read"):
        tbptt.load_parameters(path, make())


def test_another_suffix_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"to and read from \.npz and \.safetensors, not 'p\.bin'"):
        tbptt.save_parameters(tmp_path / "p.bin", make())
    assert not list(tmp_path.iterdir())


def test_without_safetensors_it_is_said_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(ValueError, match=r"'p\.safetensors' needs pip install safetensors"):
        tbptt.save_parameters(tmp_path / "p.safetensors", make())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_full_disk_leaves_what_was_there(tmp_path, suffix):
    path = tmp_path / f"parameters{suffix}"
    write_parameters(path, {"w": np.zeros([2], np.float32)})
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match=f"File too large: '{path}'"):
            write_parameters(path, {"w": np.zeros([2000], np.float32)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_folder_that_is_a_file_is_told(tmp_path, suffix):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="Not a directory"):
        write_parameters(tmp_path / "file" / f"parameters{suffix}", {"w": np.zeros([2])})
