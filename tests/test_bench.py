"""bench.py measures what the engine does, and the estimate's arithmetic."""

import math
from argparse import Namespace
from dataclasses import replace

import pytest
import torch
from conftest import CPU, random_split, script

import bench
from engine import graph, steps
from engine.cells import Cell
from reporting import cost

JOB = Namespace(cells=2, repeats=1, rank=0, ranks=1, amp=False)


@pytest.fixture
def data(tiny_data, monkeypatch):
    """Two whole batches and a small one; the teacher is narrow."""
    monkeypatch.setattr(bench, "RESNET", Cell("resnet18", 4, 0, teaches=True))
    return replace(tiny_data, train=random_split(300, 1))


@pytest.mark.parametrize("way", bench.WAYS)
def test_every_way_is_measured(data, way):
    found = bench.WAYS[way](data, CPU, JOB, lambda: None)
    assert {"ask", "view", "students", "busy"} <= set(found)
    assert all(math.isfinite(seconds) and seconds >= 0 for seconds in found.values())
    assert found["students"] > 0 and found["busy"] == 0  # there is no GPU that could be


def test_the_engines_steps_are_its_recorded_ones(data, monkeypatch):
    """A seed's cells are recorded together, and every step that is timed is a replay."""
    made = []

    def capture(step):
        made.append(0)
        for _ in range(graph.WARM_UP):
            step()

        def replay():
            made[-1] += 1
            step()

        return replay

    monkeypatch.setitem(steps.CAPTURE, "cpu", capture)
    monkeypatch.setattr(steps, "FUSES", {"cpu"})
    monkeypatch.setattr(bench, "ALPHAS", [0.1, 0.9])
    monkeypatch.setattr(bench, "TEMPERATURES", [4.0])  # two cells a seed
    found = bench.engine_way(data, CPU, Namespace(**vars(JOB) | {"cells": 3}), lambda: None)
    assert made == [5, 5] and found["test"] > 0


def test_a_block_is_one_measurement(monkeypatch):
    calls, clock = [], iter(range(100))
    monkeypatch.setattr(bench.time, "perf_counter", lambda: next(clock))
    assert bench.timed(calls.append, 3, CPU, block=4) == 1 / 4
    assert calls == list(range(4 * (2 + 3)))


def test_drawn_images_are_repeated():
    split = random_split(30, 1)
    many = bench.repeat(split, 70)
    assert len(many) == 70 and many.padded.is_contiguous()
    assert torch.equal(many.padded[60:], split.padded[:10])
    assert torch.equal(many.labels[30:60], split.labels)


# ---------------------------------------------------------------- the estimate

GRID_LINE = {"ask": 0.01, "view": 0.001, "students": 0.045, "test": 0.1, "ranks": 1}
RESNET_LINE = {"view": 0.002, "students": 0.018, "test": 2.0}


def test_the_estimates_arithmetic():
    """In minutes, by hand; an epoch has 391 steps."""
    parts = {name.split(",")[0]: m for name, _, m in cost.estimate(GRID_LINE, RESNET_LINE)}
    new = sum((161 / 162) ** epoch for epoch in range(500))  # of an image's views, by expectation
    assert parts == pytest.approx(
        {
            "teacher": 100 * (391 * 0.020 + 2.0) / 60,
            "its logits": new * 391 * 0.01 / 60,
            "5 seeds' grid": 500 * (391 * (0.001 + 0.051) + 5.1) / 60,
            "two ResNet-18 students": 200 * (391 * (0.001 + 0.018) + 2.0) / 60,
        }
    )
    text = cost.estimate_text(GRID_LINE, RESNET_LINE)
    assert f"| all | | {sum(parts.values()):.0f} |" in text
    assert "100 epochs x (391 steps x 20.000 ms + 2.000 s of testing) | 16.4 |" in text


def test_ranks_share_the_testing():
    def minutes(ranks: int) -> list[float]:
        return [m for _, _, m in cost.estimate(GRID_LINE | {"ranks": ranks}, RESNET_LINE)]

    assert minutes(1)[2] - minutes(2)[2] == pytest.approx(500 * 2.55 / 60)


def test_bench_tells_every_line_and_the_estimate(tmp_path, monkeypatch, capsys):
    seconds = {"ask": 0.5, "view": 0.001, "students": 0.01, "busy": 0.0, "memory": 2**30}
    monkeypatch.setattr(bench, "side_by_side", lambda job: seconds | {"test": job["cells"]})
    asked_for = ["--cells", 1, bench.GRID, "--no-amp", "--estimate", "--out-dir", tmp_path]
    assert script(bench.main, *asked_for) == 0
    text = (tmp_path / "results" / "bench.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith(("| plain", "| engine"))]
    said = capsys.readouterr().out
    assert len(rows) == 4 and all(row in said for row in rows)
    assert "a ResNet-18" in rows[-1] and "What `sh exp.sh` will take" in text
    columns = cost.HEADER.splitlines()[0].count("|")
    assert all(row.count("|") == columns for row in rows)


def test_an_estimate_needs_a_grid(tmp_path, capsys):
    assert script(bench.main, "--cells", 1, "--estimate", "--out-dir", tmp_path) == 2
    assert "--cells 45" in capsys.readouterr().err
