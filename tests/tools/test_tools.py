"""The tools do what their docstrings say."""

import dataclasses
import json
import math
import re

import numpy as np
import pytest

from tbptt.streams.corpus import split_words
from tools.bench import benchmark, contestants, flatness, small_model, soak, synthetic_words
from tools.bench.workers import Worker, WorkerError, reason

TINY = contestants.Size(4, 6, 5, 8, layers=2, vocabulary=11, windows_per_call=3)


def test_synthetic_corpus_has_the_size_and_the_words_it_promises():
    text = synthetic_words.sentences(np.random.default_rng(0), 50_001)
    words = split_words(text)
    assert len(words) == 50_001
    assert 9_000 < len(set(words)) <= 10_000
    assert max(len(line.split()) for line in text.splitlines()) == synthetic_words.SENTENCE - 1
    assert text.endswith("\n")


def test_flatness_measures_time_and_memory(tmp_path):
    path = tmp_path / "tokens.bin"
    small_model.write_tokens(path, 40_000)
    assert path.stat().st_size == 80_000
    found = small_model.measure(
        small_model.open_stream(path, rows=flatness.ROWS, window_length=flatness.WINDOW), calls=8
    )
    assert 0 < found["ms"] < 1e4
    assert found["resident_mb"] > 100


def entry(*times: float) -> benchmark.Entry:
    return benchmark.Entry([float(time) for time in times], 1.5, 20.0, 2.4)


def test_ratios_are_medians_over_the_rounds():
    # The machine was slow in the second round, for both: the ratio does not notice.
    assert benchmark.ratio([1, 10, 2], [2, 20, 4]) == 2
    assert benchmark.ratio([1, 1, 1], [1, 3, 8]) == 3


def test_evaluation_of_given_times():
    entries = {
        "ours-native-xla": entry(2, 4, 2),
        "ours-fused-plain": entry(3, 6, 3),
        "ours-native-xla-resets": entry(2.2, 4.4, 2.2),
        "torch": entry(3, 8, 4),  # ratios 1.5, 2, 2
        "ours-bfloat16-native": entry(1, 2, 1),
        "torch-bfloat16": entry(2, 3, 2),  # no peer of float32
        "torch-bfloat16-parameters": entry(1.5, 2, 1.5),
        "keras": entry(8, 20, 8),
        "keras-xla": entry(6, 12, 6),
        "jax": benchmark.Entry(error="no such | thing"),
        "product-numpy-2048": entry(100, 200, 200),
        "product-numpy-512": entry(100, 100, 90),
    }
    result = benchmark.evaluate("tiny", TINY, entries)
    gflops = 2 * 512 * 4096 * 2048 / 100e-3 / 1e9
    assert result["ceiling_gflops"] == pytest.approx(gflops)
    assert result["ceiling_share"] == pytest.approx(TINY.product_flops / (2e-3 * gflops * 1e9))
    assert (result["ours_ms"], result["torch_ms"], result["keras_ms"]) == (2, 4, 6)
    assert result["jax_ms"] is None
    assert result["best_peer"] == "torch"
    assert result["ours_over"] == {"torch": 2, "keras": 3, "jax": None}
    assert result["resets_cost"] == pytest.approx(0.1)
    rows = {row["name"]: row for row in result["rows"]}
    assert "product-numpy-512" not in rows
    assert rows["ours-native-xla"]["tokens_per_second"] == TINY.tokens / 2e-3
    assert rows["ours-native-xla"]["ratio_to_baseline"] == 2
    assert rows["keras"]["ratios"]["keras-xla"] == pytest.approx(0.75)
    text = benchmark.table(result)
    assert len({len(line) for line in text.splitlines()}) == 1  # aligned
    assert "no such" in next(line for line in text.splitlines() if "| jax" in line)
    assert benchmark.summary(result).startswith(
        "tiny: ours 2.00 ms (ours-native-xla); 2.00 x torch, 3.00 x keras; "
    )
    assert benchmark.summary(result).endswith("bfloat16 1.50 x torch; resets cost 10.0 %")


def test_evaluation_without_peers_and_without_anything():
    alone = benchmark.evaluate("tiny", TINY, {"ours-scan-xla": entry(2)})
    assert benchmark.summary(alone) == "tiny: ours 2.00 ms (ours-scan-xla)"
    nothing = {"torch": benchmark.Entry(error="no"), "ours-fused-xla": benchmark.Entry(error="no")}
    result = benchmark.evaluate("tiny", TINY, nothing)
    assert benchmark.summary(result) == "tiny: ours was not measured"
    assert json.loads(json.dumps(result, allow_nan=False))["rows"][0]["error"] == "no"


def test_product_flops_counts_every_matrix():
    size = contestants.Size(2, 3, 5, 7, layers=2, vocabulary=11, windows_per_call=1)
    forward = 2 * (2 * 3) * (4 * 7 * (5 + 7) + 4 * 7 * (7 + 7) + 7 * 11)
    assert size.product_flops == 3 * forward


def test_windows_of_a_contestant_continue_each_other():
    x, y = contestants.windows_of(TINY)
    assert x.shape == y.shape == (3, 6, 4)
    np.testing.assert_array_equal(x[:, 1:], y[:, :-1])
    np.testing.assert_array_equal(x[1:, 0], y[:-1, -1])


def test_benchmark_from_processes_to_table_and_json(tmp_path):
    names = ["ours-fused-plain", "keras"]
    entries = benchmark.measure("tiny", TINY, [*names, "product-numpy-512"], 2, timeout=100)
    result = {**benchmark.evaluate("tiny", TINY, entries), "machine": benchmark.machine()}
    path = tmp_path / "result.json"
    benchmark.write_json(path, [result])
    (read,) = json.loads(path.read_text())
    assert {
        *("size", "ours_ms", "torch_ms", "keras_ms", "jax_ms", "ceiling_share"),
        *("ceiling_gflops", "resets_cost", "rows", "machine"),
    } <= set(read)
    assert [row["name"] for row in read["rows"]] == names
    for row in read["rows"]:
        assert row["error"] is None
        assert row["ms"] > 0
        assert row["first_step_s"] > 0
        assert 0 <= row["peak_mb"] < 2000
        assert row["first_loss"] == pytest.approx(math.log(TINY.vocabulary), abs=0.1)
    assert len(benchmark.table(read).splitlines()) == 2 + len(names)
    assert re.fullmatch(r"tiny: ours [\d.]+ ms \(.*\); [\d.]+ x keras; .*", benchmark.summary(read))
    assert "tensorflow" in benchmark.heading(read["machine"])


SWEEP = {
    (16, 8): {"tbptt": 4e4, "torch": 3e4, "jax": 2e4},  # keras failed here
    (32, 8): {"tbptt": 3e4, "torch": 2e4, "keras": 1e4, "jax": 9e3},
}


def test_figures_of_the_plot_show_who_is_missing():
    line = benchmark.sweep_table(SWEEP).splitlines()[2]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == ["16", "8", "40,000", "30,000", "-", "20,000"]


@pytest.mark.torch
def test_plot_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    points = list(SWEEP)
    panels = [("hidden", points, 0), ("window", points[:1], 1)]
    benchmark.draw(SWEEP, panels, str(tmp_path / "plot.png"))
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.torch
@pytest.mark.parametrize("name", list(contestants.CONTESTANTS))
def test_contestant_starts_at_log_v_and_learns(name):
    for package in contestants.CONTESTANTS[name].packages:
        pytest.importorskip(package)
    worker = Worker(name, dataclasses.replace(TINY, vocabulary=5), timeout=200)
    try:
        losses = [worker.answer()["loss"], *(worker.turn(3)["loss"] for _ in range(200))]
    except WorkerError as error:
        if name.startswith("torch-bfloat16"):  # not every processor has it
            pytest.skip(str(error))
        raise
    finally:
        worker.close()
    assert losses[0] == pytest.approx(math.log(5), abs=0.2)
    assert losses[-1] < losses[1] - 0.005


def test_contestant_that_raises_is_shown_with_its_reason():
    broken = dataclasses.replace(TINY, hidden=0)
    entries = benchmark.measure("broken", broken, ["ours-fused-plain"], 1, timeout=100)
    text = benchmark.table(benchmark.evaluate("broken", broken, entries))
    assert "| ours-fused-plain |" in text
    assert "ValueError: hidden_size (0) must be at least 1" in text


def test_worker_that_dies_or_hangs_is_told():
    worker = Worker("product-numpy-512", TINY, timeout=100)
    worker.answer()
    worker._process.kill()
    with pytest.raises(WorkerError, match="died with status -9: no message"):
        worker.turn(1)
    worker.close()
    worker = Worker("product-numpy-512", TINY, timeout=0.001)
    with pytest.raises(WorkerError, match="no answer in"):
        worker.answer()
    worker.close()
    assert worker._process.returncode is not None


def test_missing_package_is_told_with_the_command():
    error = ModuleNotFoundError("No module named 'torch'", name="torch")
    assert reason(error) == "torch is not installed: pip install -e '.[bench]'"
    assert reason(RuntimeError("one\n| two")) == "RuntimeError: one / two"
    assert len(reason(RuntimeError("long " * 100))) < 120


def test_soak_of_a_short_run(tmp_path):
    samples = soak.train(400, tmp_path, windows_per_call=10)
    assert sum(one.windows for one in samples) == 400
    run = soak.tenths(samples)
    assert len(run) == 10
    # Other tests run beside this one, and ten windows are short: of time, no verdict here.
    assert soak.problems(run, slower=100.0) == []
    assert all(one.ms > 0 and one.resident_mb > 100 and one.objects > 0 for one in run)
    assert len(soak.table(run).splitlines()) == 12
    assert list((tmp_path / "run").glob("events*"))


def test_soak_tells_what_creeps():
    flat = [soak.Tenth(5.0, 2.0, 600.0, 2, 1000, 20, 10)] * 10

    def last(**changes: float) -> list[str]:
        return soak.problems([*flat[:-1], dataclasses.replace(flat[-1], **changes)])

    assert last() == []
    assert last(resident_mb=611.0, products=2.19, ms=50.0) == []  # 2 % are 12 MB
    assert (
        soak.problems([dataclasses.replace(flat[0], products=9.0, resident_mb=9.0), *flat[1:]])
        == []
    )
    (memory,) = last(resident_mb=613.0)
    assert memory == "memory grew by 13.0 MB; 12.0 MB are allowed"
    (slower,) = last(products=2.21)
    assert "2.210 of the yardstick and took 2.000" in slower
    assert last(traces=3) == ["3 traces; training and evaluation have one each"]
    assert last(threads=21, files=12) == ["threads: 20 became 21", "files: 10 became 12"]
