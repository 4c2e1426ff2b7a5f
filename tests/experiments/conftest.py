"""Small runs of experiments in this process, and files like a stranger's."""

import json

import numpy as np
import pytest

from experiments import run

SMALL = dict(rows=2, hidden=4, max_windows=3, windows_per_call=2, jit_compile=False)


def experiment(module, logdir, *, config=None, options=None, **settings):
    """The result of a module's `main`, which is the one that it wrote."""
    config = config or next(iter(module.PRESETS))
    with run.usage_errors():
        made = module.Settings(**{"config": config, **module.PRESETS[config], **SMALL, **settings})
        options = run.Options(str(logdir), **(options or {}))
    result = module.main(made, options)
    assert json.loads((logdir / "result.json").read_text()) == result
    return result


def pack(frames):
    return np.packbits(frames.astype(np.uint8), axis=1)


@pytest.fixture
def files(tmp_path):
    """Small files in the layouts of music, speech and a table, of other widths than usual."""
    rng = np.random.default_rng(0)
    lengths = {"train": [9, 5, 12], "valid": [7, 4], "test": [6, 3]}
    music = {f"{part}_len": np.array(each) for part, each in lengths.items()}
    music |= {part: pack(rng.random([sum(each), 20]) < 0.2) for part, each in lengths.items()}
    np.savez(tmp_path / "music.npz", **music)
    speech = {}
    for part, count in (("train", 12), ("test", 6)):
        speech[f"{part}_len"] = rng.integers(2, 9, count)
        speech[part] = rng.normal(size=[speech[f"{part}_len"].sum(), 5])
        speech[f"{part}_y"] = np.arange(count) % 3 + 10  # labels need not begin at 0
    np.savez(tmp_path / "speech.npz", **speech)
    rows = [f"2020-01-{d:02},{d % 7},{'' if d == 9 else d % 5}" for d in range(1, 29) if d != 15]
    (tmp_path / "table.csv").write_text("\n".join(["day,wind,rain", *rows]))
    return tmp_path
