"""The tables in docs/design.md show which law is tested for which core, backend and stream."""

import collections
import pathlib
import re

import pytest

from tests.conftest import BACKENDS, CORES
from tests.streams.test_streams import STREAMS, TRUNCATIONS

DESIGN = pathlib.Path(__file__).parent.parent / "docs" / "design.md"
NAMES = {"lstm": "LSTM", "gru": "GRU", "stack": "stack of both", "own": "cell of the test's own"}


def laws_of(item):
    """Returns the numbers after "Law" in the docstring of a test."""
    text = item.function.__doc__ or ""
    found = [match[0] for match in re.finditer(r"\bLaws? \d+(,? (and )?\d+)*", text)]
    return {int(number) for part in found for number in re.findall(r"\d+", part)}


def core_of(item, params):
    """Returns kind, backend and whether XLA compiles, of a test of one core; else None."""
    kind = params.get("kind")
    if kind not in CORES:
        return None
    backend = params.get("backend") or params.get("other") or params.get("other_backend")
    backend = (backend or ("scan" if kind == "own" else "native")).split(",")[0]
    return kind, backend, bool(params.get("jit")) or "compiled_equal" in item.name


def tables(items):
    """Returns the two tables, of cores and of streams, in Markdown."""
    cores, streams = collections.defaultdict(set), collections.defaultdict(set)
    truncations = collections.defaultdict(set)
    for item in items:
        params = getattr(item, "callspec", None) and item.callspec.params
        for law in laws_of(item) if params else ():
            core = core_of(item, params)
            if core:
                cores[law, core[0]].add(core[1:])
            if params.get("stream") in STREAMS:
                streams[params["stream"]].add(law)
                truncations[params["stream"]].add(params.get("truncation"))
    rows = ["| law | " + " | ".join(NAMES.values()) + " |", "|---|---|---|---|---|"]
    for law in sorted({law for law, _ in cores}):
        cells = []
        for kind in CORES:
            found = cores[law, kind]
            names = [
                name + (" + XLA" if (name, True) in found else "")
                for name in BACKENDS
                if {(name, False), (name, True)} & found
            ]
            cells.append(", ".join(names) or "-")
        rows.append(f"| {law} | " + " | ".join(cells) + " |")
    of_streams = ["| stream | laws | truncations |", "|---|---|---|"]
    for stream in STREAMS:
        laws = ", ".join(map(str, sorted(streams[stream]))) or "-"
        count = len(truncations[stream] & set(TRUNCATIONS))
        of_streams.append(f"| {stream} | {laws} | {count} of {len(TRUNCATIONS)} |")
    return "\n".join(rows), "\n".join(of_streams)


def test_the_tables_of_laws_are_those_of_the_suite(request):
    here = pathlib.Path(__file__).parent
    files = {item.path for item in request.session.items} | {here / "test_torch.py"}  # deselected
    if missing := {path for path in here.rglob("test_*.py") if path not in files}:
        pytest.skip(f"The tables are of the whole suite; {len(missing)} files are not in this run.")
    for table in tables(request.session.items):
        assert table in DESIGN.read_text(), table
