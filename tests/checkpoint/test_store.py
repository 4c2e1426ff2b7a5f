"""A checkpoint on disk is whole or it is not there, and what is damaged is told."""

import errno
import json
import os
import pathlib
import resource
import shutil
import zipfile

import ml_dtypes
import numpy as np
import pytest
from absl import logging

from tbptt import checkpoint as ck
from tbptt.checkpoint.manifest import digest_of
from tbptt.testing import assert_same_bits

ARRAYS = {
    "w": np.arange(6, dtype=np.float32).reshape(2, 3),
    "step": np.int64(7),
    "flag": np.array([True, False]),
    "half": np.array([1.5, -2.0], ml_dtypes.bfloat16),
    "empty": np.zeros([0, 4]),
}
FACTS = {"cursor": [1, 2], "settings": {"rate": 0.1, "name": "é"}}


def make(step=7):
    return ck.Checkpoint(step, {name: np.asarray(a) for name, a in ARRAYS.items()}, FACTS)


def test_what_was_written_comes_back(tmp_path):
    ck.write_checkpoint(tmp_path / "one", make())
    found = ck.read_checkpoint(tmp_path / "one")
    assert found.step == 7
    assert found.facts == FACTS
    assert list(found.arrays) == list(ARRAYS)
    for name, array in make().arrays.items():
        assert_same_bits(found.arrays[name], array)
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def truncate(path):
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def flip(path, at=-9):
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(bytes(content))


DAMAGE = {
    "arrays gone": ("arrays.npz", lambda p: p.unlink(), "cannot be read"),
    "arrays empty": ("arrays.npz", lambda p: p.write_bytes(b""), "has 0 bytes, but manifest.json"),
    "arrays cut": ("arrays.npz", truncate, "it is damaged"),
    "a bit of the arrays": ("arrays.npz", lambda p: flip(p, 200), "its checksum differs"),
    "manifest gone": ("manifest.json", lambda p: p.unlink(), "cannot be read"),
    "manifest cut": ("manifest.json", truncate, "cannot be read"),
    "manifest empty": ("manifest.json", lambda p: p.write_bytes(b""), "cannot be read"),
    "another cursor": (
        "manifest.json",
        lambda p: p.write_text(p.read_text().replace("[1, 2]", "[1, 3]")),
        "its checksum differs",
    ),
    "no manifest": ("manifest.json", lambda p: p.write_text("[]"), "cannot be read"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_told_and_the_one_before_is_read(tmp_path, case, monkeypatch):
    warnings = []
    monkeypatch.setattr(logging, "warning", lambda text, *a: warnings.append(text % a))
    file, damage, message = DAMAGE[case]
    checkpoints = ck.Checkpoints(tmp_path)
    for step in (3, 7):
        checkpoints.save(make(step))
    checkpoints.wait()
    damage(checkpoints.path(7) / file)
    with pytest.raises(ck.CheckpointError, match=message):
        ck.read_checkpoint(checkpoints.path(7))
    assert checkpoints.newest().step == 3
    assert len(warnings) == 1
    assert "checkpoint of window 7 cannot be used" in warnings[0]
    assert message in warnings[0]
    assert checkpoints.steps() == [3]
    checkpoints.save(make(7))  # the run comes to the same place again
    checkpoints.wait()
    assert checkpoints.newest().step == 7
    shutil.rmtree(checkpoints.path(7))
    damage(checkpoints.path(3) / file)
    with pytest.raises(ck.CheckpointError, match=r"No checkpoint in .* can be used"):
        checkpoints.newest()


def test_the_newest_few_are_kept(tmp_path):
    checkpoints = ck.Checkpoints(tmp_path / "new", keep=2)
    assert checkpoints.newest() is None
    for step in (1, 12, 5_000_000_000_000):
        checkpoints.save(make(step))
    checkpoints.wait()
    assert checkpoints.steps() == [12, 5_000_000_000_000]
    assert len(list((tmp_path / "new").iterdir())) == 2


def test_what_a_killed_run_left_is_removed_and_never_read(tmp_path):
    ck.write_checkpoint(tmp_path / "step-000000000003", make(3))
    shutil.copytree(tmp_path / "step-000000000003", tmp_path / "step-000000000009.partial")
    checkpoints = ck.Checkpoints(tmp_path)
    assert checkpoints.newest().step == 3
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000000003"]


def test_arrays_are_an_npz_that_numpy_reads_by_itself(tmp_path):
    transposed = np.arange(6.0).reshape(2, 3).T
    arrays = {**ARRAYS, "transposed": transposed, "strided": np.arange(9)[::2]}
    ck.write_checkpoint(tmp_path / "one", ck.Checkpoint(1, arrays, {}))
    with np.load(tmp_path / "one" / "arrays.npz", allow_pickle=False) as file:
        assert file.files == list(arrays)
        for name in set(arrays) - {"half"}:
            assert_same_bits(file[name], arrays[name])
        assert_same_bits(file["half"], arrays["half"].view(np.uint16))


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("first byte", "No space left on device"),
        ("some bytes", "File too large"),
        ("durable", "Input/output error"),
        ("rename", "Read-only file system"),
    ],
)
def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch, place, message):
    """As on a full disk: from the first byte to the very end."""
    checkpoints = ck.Checkpoints(tmp_path)
    checkpoints.save(make(3))
    checkpoints.wait()
    assert checkpoints.error() is None

    def fail(number):
        def raising(*_, **__):
            raise OSError(number, os.strerror(number))

        return raising

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with monkeypatch.context() as patch:
        if place == "first byte":
            patch.setattr(zipfile.ZipFile, "open", fail(errno.ENOSPC))
        elif place == "some bytes":  # the system's own refusal
            resource.setrlimit(resource.RLIMIT_FSIZE, (300, limits[1]))
        elif place == "durable":
            patch.setattr(os, "fsync", fail(errno.EIO))
        else:
            patch.setattr(type(tmp_path), "rename", fail(errno.EROFS))
        checkpoints.save(make(7))
        checkpoints.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert message in str(checkpoints.error())
    assert checkpoints.error() is None  # told once
    assert checkpoints.newest().step == 3
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000000003"]
    checkpoints.save(make(8))
    checkpoints.wait()
    assert checkpoints.newest().step == 8


def test_nothing_is_overwritten(tmp_path):
    ck.write_checkpoint(tmp_path / "one", make(3))
    with pytest.raises(FileExistsError, match="There is a checkpoint at"):
        ck.write_checkpoint(tmp_path / "one", make(4))
    assert ck.read_checkpoint(tmp_path / "one").step == 3


def test_a_checkpoint_of_a_later_version_is_refused_and_left_alone(tmp_path):
    checkpoints = ck.Checkpoints(tmp_path)
    for step in (3, 7):
        checkpoints.save(make(step))
    checkpoints.wait()
    path = checkpoints.path(7) / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["content"]["version"] = 3
    manifest["sha256"] = digest_of(manifest["content"])
    path.write_text(json.dumps(manifest))
    with pytest.raises(ck.CheckpointError, match="is of version 3, but this program reads up to 2"):
        checkpoints.newest()
    assert checkpoints.steps() == [3, 7]


def test_facts_that_json_does_not_know_come_back(tmp_path):
    facts = {
        "best": float("inf"),
        "all": [-float("inf"), 1.5, {"last": float("nan")}],
        "none": None,
    }
    ck.write_checkpoint(tmp_path / "one", ck.Checkpoint(1, {}, facts))
    json.loads(
        (tmp_path / "one" / "manifest.json").read_text(),
        parse_constant=lambda name: pytest.fail(f"{name} is no JSON"),
    )
    found = ck.read_checkpoint(tmp_path / "one").facts
    assert repr(found) == repr(facts)


FOREIGN = {
    "no object": (lambda c: [], "its content is no JSON object"),
    "no facts": (lambda c: c.pop("facts") and c, "'facts' in it is null"),
    "text for facts": (lambda c: c | {"facts": "none"}, "'facts' in it is \"none\""),
    "no arrays": (lambda c: c | {"arrays": {}}, "manifest.json says nothing of the array 'w'"),
    "one array more": (
        lambda c: c | {"arrays": c["arrays"] | {"x": ["int32", [2]]}},
        r"has 'x' of shape None, but manifest.json says \[2\]",
    ),
    "a huge shape": (
        lambda c: c | {"arrays": c["arrays"] | {"w": ["float32", [10**12, 10**12]]}},
        r"has 'w' of shape \[2, 3\], but manifest.json says \[1000000000000, 1000000000000\]",
    ),
    "a shape of text": (
        lambda c: c | {"arrays": {"w": ["float32", ["a"]]}},
        "'arrays' in it is {",
    ),
    "no type": (
        lambda c: c | {"arrays": c["arrays"] | {"w": ["nodtype", [2, 3]]}},
        "arrays.npz cannot be read: .*nodtype",
    ),
    "another type": (
        lambda c: c | {"arrays": c["arrays"] | {"w": ["float64", [2, 3]]}},
        "arrays.npz cannot be read",
    ),
    "version of text": (lambda c: c | {"version": "9"}, "'version' in it is \"9\""),
    "step of text": (lambda c: c | {"step": "7"}, "'step' in it is \"7\""),
    "step below zero": (lambda c: c | {"step": -7}, "'step' in it is -7"),
    "bytes of text": (lambda c: c | {"bytes": "7"}, "'bytes' in it is \"7\""),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_foreign_content_is_told_though_its_checksum_is_right(tmp_path, case):
    change, message = FOREIGN[case]
    ck.write_checkpoint(tmp_path / "one", make())
    path = tmp_path / "one" / "manifest.json"
    content = change(json.loads(path.read_text())["content"])
    path.write_text(json.dumps({"content": content, "sha256": digest_of(content)}))
    with pytest.raises(ck.CheckpointError, match=message):
        ck.read_checkpoint(tmp_path / "one")


@pytest.mark.parametrize("version", [1, 2])
def test_every_version_that_was_is_read(version):
    """A golden checkpoint was written when its version was new; it stays as it is."""
    found = ck.read_checkpoint(pathlib.Path(__file__).parent / f"golden-version-{version}")
    assert (found.step, found.facts["cursor"]) == (12, [1, 4])
    assert found.facts["stream"] == "0123456789abcdef"
    assert found.facts["settings"] == {"seed": 0, "rate": 0.1}
    assert repr(found.facts.get("best")) == {1: "None", 2: "[inf, nan]"}[version]
    assert {name: (a.dtype.name, a.tolist()) for name, a in found.arrays.items()} == {
        "model.w": ("float32", [[0.0, 0.25, 0.5], [0.75, 1.0, 1.25]]),
        "step": ("int64", 12),
        "carry.position": ("int64", [5, 9]),
        "carry.state.hidden": ("float32", [[0.5, -1.0]]),
        "average.begun": ("bool", True),
        "half": ("bfloat16", [1.5, -2.0]),
    }
