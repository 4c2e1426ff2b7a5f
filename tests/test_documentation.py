"""The documentation builds strictly: no broken link, no argument that a function does not have."""

import importlib.util
import inspect
import pkgutil
import re
import subprocess
import sys

import pytest

import tbptt
from tests.commands import ROOT


@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("mkdocs", "material", "mkdocstrings")),
    reason="needs mkdocs: pip install -e '.[docs]'",
)
def test_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert built.returncode == 0, built.stderr
    page = (tmp_path / "api" / "layers" / "index.html").read_text("utf-8")
    assert 'id="tbptt.layers.lstm.LSTM"' in page
    assert "recurrent_dropout" in page


def test_every_package_and_module_has_a_page():
    shown = re.findall(
        r"^::: (\S+)$",
        "".join(path.read_text() for path in (ROOT / "docs" / "api").glob("*.md")),
        re.MULTILINE,
    )
    modules = {
        module.name
        for module in pkgutil.walk_packages(tbptt.__path__, "tbptt.")
        if not module.ispkg and not module.name.startswith("tbptt.unroll.fused.")
    } - {"tbptt.quiet"}
    assert set(shown) - {"tbptt.unroll.fused"} == modules


@pytest.mark.parametrize("name", tbptt.__all__)
def test_documented_arguments_are_complete(name):
    public = getattr(tbptt, name)
    call = public.__init__ if inspect.isclass(public) else public
    text = inspect.getdoc(call) or ""
    if "Args:\n" in text and inspect.isfunction(call):
        arguments = [p for p in inspect.signature(call).parameters if p != "self"]
        missing = [a for a in arguments if not re.search(rf"^ *(\w+, )*{a}(, \w+)*:", text, re.M)]
        assert not missing


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_links_of_pages_outside_the_site(page):
    for target, anchor in re.findall(r"\]\(([^:)#]+)#?([^)]*)\)", (ROOT / page).read_text()):
        assert (ROOT / target).exists()
        if anchor:
            titles = re.findall(r"^#+ (.+)$", (ROOT / target).read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w-]", "", t.lower().replace(" ", "-")) for t in titles}


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) < 1200
