"""What a built wheel and a built sdist contain, and that the wheel can be imported."""

import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

from tests.commands import ROOT

BUILD = """
from setuptools import build_meta
print(build_meta.build_sdist("dist"))
print(build_meta.build_wheel("dist"))
"""


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """Builds both archives from a copy of the project, without a network."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("tbptt", "experiments", "tools", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    built = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BUILD], cwd=source, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    (sdist,) = (source / "dist").glob("*.tar.gz")
    (wheel,) = (source / "dist").glob("*.whl")
    return sdist, wheel


def modules() -> set[str]:
    """Returns the library's files, as paths inside an archive: modules, kernels, server's page."""
    paths = [
        path
        for ending in ("py", "cc", "h", "html")
        for path in (ROOT / "tbptt").rglob(f"*.{ending}")
    ]
    return {str(path.relative_to(ROOT)) for path in paths}


def test_wheel_holds_only_the_library(archives):
    names = zipfile.ZipFile(archives[1]).namelist()
    library = {name for name in names if ".dist-info/" not in name}
    assert library == modules() | {"tbptt/py.typed"}
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_sdist_holds_the_library_and_no_other_package(archives):
    with tarfile.open(archives[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert modules() | {"tbptt/py.typed", "LICENSE", "README.md", "pyproject.toml"} <= names
    packages = {pathlib.PurePath(name).parts[0] for name in names if name.endswith(".py")}
    assert packages <= {"tbptt", "tests", "setup.py"}  # setuptools adds tests/test_*.py by itself


def test_wheel_is_imported_from_where_it_was_unpacked(archives, tmp_path):
    zipfile.ZipFile(archives[1]).extractall(tmp_path / "unpacked")
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'unpacked')!r})\n"
        "import tbptt; print(tbptt.__file__); print(tbptt.make_seed(0).shape[0])"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    file, size = ended.stdout.split()
    assert pathlib.Path(file) == tmp_path / "unpacked" / "tbptt" / "__init__.py"
    assert size == "2"
