"""Commands that cannot be carried out: what is promised to be said, and that nothing is lost."""

import pytest

from experiments import language_model, music
from tests.experiments.conftest import command_line, contents

# Flags of a run that is as small as can be; the cases give one more.
TINY = ("--rows=2", "--hidden=4", "--max_windows=2", "--windows_per_call=2", "--nojit_compile")

SETTINGS = {
    "infinite": (music, ["--clip_norm=inf"], "clip_norm (inf) must be finite."),
    "not a number": (music, ["--learning_rate=nan"], "learning_rate (nan) must be finite."),
    "infinite temperature": (
        language_model,
        ["--temperature=inf"],
        "temperature (inf) must be finite.",
    ),
    "no bias": (language_model, ["--forget_bias=nan"], "forget_bias (nan) must be finite."),
    "infinite jitter": (language_model, ["--jitter=inf"], "jitter (inf) must be finite."),
    "huge integer": (
        language_model,
        ["--sample_length=99999999999999999999"],
        "sample_length (99999999999999999999) must fit into 64 bits.",
    ),
    "huge seed": (music, ["--seed=3000000000"], "seed (3000000000) must be at most 2147483647."),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_are_checked_before_anything_is_read_or_written(tmp_path, case):
    module, flags, message = SETTINGS[case]
    done = command_line(module, *TINY, *flags, cwd=tmp_path)
    assert (done.status, done.stdout) == (1, "")
    assert done.stderr == f"error: {message}\n"
    assert contents(tmp_path) == {}
