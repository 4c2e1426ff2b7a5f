"""Music goes on, and comes back from a MIDI file as it was."""

import sys

import mido
import numpy as np
import pytest
import tensorflow as tf

import tbptt
from experiments import midi, music
from tbptt.losses import binary_cross_entropy


def frames_of(seed, length=40, keys=88, rate=0.1):
    return np.random.default_rng(seed).random([length, keys]) < rate


def test_frames_come_back_from_the_file(tmp_path):
    for seed, (length, keys) in enumerate([(40, 88), (1, 5), (7, 107)]):
        frames = frames_of(seed, length, keys, rate=0.3)
        frames[-1] |= not frames[-1].any()
        midi.write_midi(tmp_path / "a.mid", frames)
        assert np.array_equal(midi.read_midi(tmp_path / "a.mid", keys), frames)


def test_the_notes_of_the_file_by_hand(tmp_path):
    """Key 39 is middle C, note 60: a held note is one note; silence at the end counts."""
    frames = np.zeros([5, 88], bool)
    frames[[0, 1, 3], 39] = True
    frames[1:3, 43] = True
    midi.write_midi(tmp_path / "a.mid", frames)
    file = mido.MidiFile(tmp_path / "a.mid")
    (track,) = file.tracks
    now, events = 0, []
    for message in track:
        now += message.time
        if not message.is_meta:
            events.append((message.type, message.note, now / file.ticks_per_beat))
    assert events == [
        ("note_on", 60, 0.0),
        ("note_on", 64, 1.0),
        ("note_off", 60, 2.0),
        ("note_off", 64, 3.0),
        ("note_on", 60, 3.0),
        ("note_off", 60, 4.0),
    ]
    assert file.length == pytest.approx(5 * 0.6)  # seconds


def test_files_of_others_are_read(tmp_path):
    """Two tracks, other ticks, a velocity of 0, a note struck again and one never ended, drums."""
    track, other = mido.MidiTrack(), mido.MidiTrack()
    for kind, note, velocity, time in [
        ("note_on", 60, 80, 0),
        ("note_on", 60, 0, 190),  # 1.9 quarters
        ("note_on", 62, 80, 15),
        ("note_on", 62, 80, 100),
        ("note_on", 62, 0, 5),  # shorter than a frame
    ]:
        track.append(mido.Message(kind, note=note, velocity=velocity, time=time))
    other.append(mido.Message("note_on", note=40, channel=9, time=0))
    other.append(mido.Message("note_on", note=72, channel=1, time=300))
    other.append(mido.MetaMessage("end_of_track", time=200))
    mido.MidiFile(tracks=[track, other], ticks_per_beat=100, type=1).save(tmp_path / "a.mid")
    frames = midi.read_midi(tmp_path / "a.mid", 88)
    found = [np.flatnonzero(row + 0).tolist() for row in frames]
    assert found == [[39], [39], [41], [41, 51], [51]]


def test_a_piece_goes_on_as_the_model_says():
    """Keys that are sure, and one that copies another frame by frame: the outputs are fed back."""

    class Rule(tf.Module):
        def initial_state(self, rows):
            return tf.zeros([rows, 1])

        def __call__(self, inputs, state):
            sure = 1e3 * tf.ones_like(inputs[..., :1])
            turned = 1e3 * (1 - 2 * inputs[..., 2:3])  # on after off, off after on
            fair = tf.zeros_like(sure)
            return tf.concat([sure, -sure, turned, fair], axis=-1), state

    frames = midi.continue_piece(Rule(), np.array([[0, 1, 1, 0]]), 400, seed=1)
    assert frames[:, 0].all()
    assert not frames[:, 1].any()
    assert frames[:, 2].tolist() == [False, True] * 200
    assert abs(frames[:, 3].mean() - 0.5) < 4 * 0.5 / np.sqrt(400)
    again = midi.continue_piece(Rule(), np.array([[0, 1, 1, 0]]), 400, seed=1)
    assert np.array_equal(frames, again)


def test_the_first_frame_has_the_models_probabilities():
    """4,000 keys of one logit each, at temperature 2: within four standard deviations."""

    class Fixed(tf.Module):
        def initial_state(self, rows):
            return tf.zeros([rows, 1])

        def __call__(self, inputs, state):
            return inputs * 0.0 + 1.5, state

    found = midi.continue_piece(Fixed(), np.zeros([1, 4000]), 1, temperature=2.0).mean()
    p = 1 / (1 + np.exp(-0.75))
    assert abs(found - p) < 4 * np.sqrt(p * (1 - p) / 4000)


def test_a_canon_is_continued_and_written(tmp_path):
    seeds = tbptt.split_seed(tbptt.make_seed(0), 2)
    core = tbptt.GRU(88, 4, seed=seeds[0])
    model = tbptt.SequenceModel(core, 88, binary_cross_entropy, seed=seeds[1])
    piece = music.canons(0, 1).values[:10] > 0
    frames = np.concatenate([piece, midi.continue_piece(model, piece, 6)])
    midi.write_midi(tmp_path / "canon.mid", frames)
    assert np.array_equal(midi.read_midi(tmp_path / "canon.mid", 88), frames)


def write(folder, content):
    (folder / "a.mid").write_bytes(content)
    return midi.read_midi(folder / "a.mid", 88)


def single(folder, note, end=480):
    track = mido.MidiTrack([mido.Message("note_on", note=note, time=0)])
    track.append(mido.MetaMessage("end_of_track", time=end))
    mido.MidiFile(tracks=[track]).save(folder / "a.mid")
    return midi.read_midi(folder / "a.mid", 88)


BAD = {
    "text": (lambda f: write(f, b"no music"), "cannot be read as a MIDI file"),
    "empty": (lambda f: write(f, b""), "is empty. Give the path of a MIDI file"),
    "long": (lambda f: single(f, 60, end=480 * 100_001), "is 100,001 quarters long; 100,000 can"),
    "cut": (lambda f: write(f, b"MThd\0\0\0\6\0\0\0\1\1\xe0MTrk\0\0\0\x20\0"), "cannot be read"),
    "none": (lambda f: midi.read_midi(f / "none.mid", 88), "none.mid"),
    "low": (lambda f: single(f, 20), "has note 20, but the model's 88 keys are notes 21 to 108"),
    "silent": (lambda f: midi.write_midi(f / "a.mid", np.zeros([3, 88])) or
               midi.read_midi(f / "a.mid", 88), "has no notes"),
    "high": (lambda f: midi.write_midi(f / "a.mid", np.ones([3, 108])), "above number 106 sounds"),
    "length": (lambda f: midi.continue_piece(None, np.zeros([1, 1]), 0), r"length \(0\)"),
    "cold": (lambda f: midi.continue_piece(None, np.zeros([1, 1]), 1, temperature=0.0),
             r"temperature \(0.0\) must be above 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_is_refused(tmp_path, case):
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call(tmp_path)


def test_the_extra_is_named_where_mido_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mido", None)
    with pytest.raises(ValueError, match=r"pip install -e '\.\[midi\]'"):
        midi.write_midi(tmp_path / "a.mid", np.zeros([1, 88]))
