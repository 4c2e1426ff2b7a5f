"""Sessions outlive the server: bit for bit, with their marks; what is damaged is refused."""

import asyncio
import json
import shutil
import threading

import numpy as np
import pytest

from tbptt.serving.http import keeping
from tbptt.serving.http.server import Server
from tbptt.serving.http.service import Service
from tbptt.testing import assert_same_bits
from tests.serving.http.conftest import LIMITS, VOCABULARY, Client, make_model


def make_service(model, folder):
    return Service(
        model, limits=LIMITS, batch_rows=4, sessions_folder=folder, jit_compile=False
    )  # fmt: skip


def test_a_restart_gives_sessions_back(tmp_path, model):
    """And a request that runs when the server is stopped is finished."""
    options = dict(
        port=0, limits=LIMITS, batch_rows=4, sessions_folder=tmp_path / "s", jit_compile=False
    )
    server = Server(model, {"vocabulary": VOCABULARY}, **options)
    server.start()
    ask = Client(server)
    for name in ("ann", "b é", "empty"):
        ask.ok("POST", "/sessions", {"name": name})
    ask.ok("POST", "/sessions/ann/generate", {"text": "abc", "count": 9, "seed": 1})
    ask.ok("POST", "/sessions/ann/mark", {"mark": "here"})
    ask.ok("POST", "/sessions/ann/feed", {"text": "de"})
    expected = ask.ok("GET", "/sessions/ann")
    finished = []
    body = {"text": "f", "count": 100, "seed": 2}
    other = Client(server)
    thread = threading.Thread(
        target=lambda: finished.append(other.ok("POST", "/sessions/b%20%C3%A9/generate", body))
    )
    thread.start()
    while not server.service.sessions.find("b é").lock.locked():
        assert thread.is_alive() or finished
        if finished:
            break
    server.stop()
    thread.join()
    ask.close()
    other.close()
    before = server.service
    states = {s.name: before.streamer.state(s.name) for s in before.sessions.all()}

    again = Server(model, {"vocabulary": VOCABULARY}, **options)
    assert again.restored == 3
    for name, state in states.items():
        assert_same_bits(again.service.streamer.state(name), state)
        old, new = before.sessions.find(name), again.service.sessions.find(name)
        assert old.place.steps == new.place.steps
        assert old.place.last == new.place.last
        if old.place.logits is not None:
            assert_same_bits(old.place.logits, new.place.logits)
            assert np.array_equal(old.place.seen, new.place.seen)
    again.start()
    ask = Client(again)
    found = ask.ok("GET", "/sessions/ann")
    assert {name: found[name] for name in ("steps", "marks")} == {
        name: expected[name] for name in ("steps", "marks")
    }
    assert ask.ok("GET", "/sessions/b%20%C3%A9")["steps"] == finished[0]["steps"] > 1
    assert finished[0]["reason"] in ("count", "server stopping")
    assert ask.ok("POST", "/sessions/ann/rollback", {"mark": "here"})["steps"] == 12
    ask.close()
    again.stop()
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["sessions-000002"]


@pytest.fixture(scope="module")
def kept(tmp_path_factory, model):
    """A folder with two sessions, and what they are."""
    folder = tmp_path_factory.mktemp("kept")
    service = make_service(model, folder)
    for name in ("ann", "bob"):
        service.sessions.open(name)
    keeping.save(folder, service.sessions, model)
    return folder


def damage_manifest(**facts):
    def change(folder):
        from tbptt.checkpoint.store import Checkpoint, read_checkpoint, write_checkpoint

        found = read_checkpoint(folder)
        shutil.rmtree(folder)
        write_checkpoint(folder, Checkpoint(1, found.arrays, {**found.facts, **facts}))

    return change


def cut(folder):
    path = folder / "arrays.npz"
    path.write_bytes(path.read_bytes()[:-9])


def flip(folder):
    path = folder / "arrays.npz"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def no_manifest(folder):
    (folder / "manifest.json").write_text(json.dumps([1]))


ANN = {"name": "ann", "age": 1.0, "idle": 0.0, "place": 0, "marks": {}}
DAMAGES = {
    "cut": (cut, "bytes"),
    "one bit": (flip, "checksum"),
    "manifest": (no_manifest, "manifest"),
    "version": (damage_manifest(version=2), "of version 2, not 1"),
    "model": (damage_manifest(model="0"), "of another model"),
    "twice": (damage_manifest(sessions=[ANN, ANN]), "'ann' already"),
    "name": (damage_manifest(sessions=[ANN | {"name": "../a"}]), "without slashes"),
    "name of another type": (damage_manifest(sessions=[ANN | {"name": 3}]), "TypeError"),
    "place": (damage_manifest(sessions=[ANN | {"place": 7}]), "name the place 7 of 2"),
    "place as text": (damage_manifest(sessions=[ANN | {"place": "0"}]), "name the place 0 of 2"),
    "steps": (damage_manifest(places=[[-1, None]] * 2), "has read -1 steps"),
    "last": (damage_manifest(places=[[1, 99]] * 2), "last token of a session is 99"),
    "more places": (damage_manifest(places=[[1, None]] * 3), "shape"),
    "no sessions": (damage_manifest(sessions=None), "TypeError"),
    "marks": (damage_manifest(sessions=[ANN | {"marks": [1]}]), "AttributeError"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_sessions_are_refused(tmp_path, kept, model, name):
    damage, message = DAMAGES[name]
    shutil.copytree(kept, tmp_path / "s")
    damage(tmp_path / "s" / "sessions-000001")
    service = make_service(model, tmp_path / "s")
    with pytest.raises(keeping.KeptError, match=message) as raised:
        keeping.restore(tmp_path / "s", service.sessions, model)
    assert "Remove that folder to start without them" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_sessions_of_another_model_are_refused(kept):
    other = make_model(seed=4)
    service = make_service(other, kept)
    with pytest.raises(keeping.KeptError, match="of another model, or of other parameters"):
        keeping.restore(kept, service.sessions, other)


def test_a_folder_that_cannot_be_written_is_told(tmp_path, model):
    (tmp_path / "file").write_text("")
    with pytest.raises(keeping.KeptError, match=r"'.*/file', cannot be made \(File exists\)"):
        make_service(model, tmp_path / "file").prepare()
    service = make_service(model, tmp_path / "s")
    service.sessions.open("ann")
    (tmp_path / "s").write_text("")
    asyncio.run(service.stop())
    assert "The sessions cannot be kept in" in service.lost


def test_other_files_in_the_folder_stay(tmp_path, model):
    (tmp_path / "sessions-mine").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    service = make_service(model, tmp_path)
    assert keeping.restore(tmp_path, service.sessions, model) == 0
    for _ in range(2):
        assert keeping.save(tmp_path, service.sessions, model) == 0
    assert keeping.restore(tmp_path, service.sessions, model) == 0
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["notes.txt", "sessions-000002", "sessions-mine"]
