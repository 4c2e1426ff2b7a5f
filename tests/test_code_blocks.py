"""The Python code blocks of the README and the guide, run as they stand, in a temporary folder."""

import re

import pytest

from tests.commands import ROOT


def blocks(page: str) -> list[tuple[int, str]]:
    """Returns the Python code blocks of a page, each with the number of its first line."""
    text = (ROOT / page).read_text("utf-8")
    found = re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [(text.count("\n", 0, match.start(1)), match[1]) for match in found]


@pytest.mark.parametrize("page", ["README.md", "docs/guide.md"])
def test_blocks_of_a_page_run_one_after_another(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = blocks(page)
    assert found
    names: dict[str, object] = {"__name__": "page"}
    for lines_before, block in found:  # an error then names the line of the page
        exec(compile("\n" * lines_before + block, str(ROOT / page), "exec"), names)
