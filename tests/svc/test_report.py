"""Figures: the row, the file, and the README's tables made from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from svc.cli.bench.rates import rate_row
from svc.report import Row, fill, write_rows

ROW = Row(name="ttft", value=30.0, unit="ms", baseline=3000.0, ratio=100.0, target=">= 10")


@pytest.mark.parametrize(
    ("ratio", "target", "met"),
    [(10.0, ">= 10", True), (9.99, ">= 10", False), (1.3, "<= 1.2", False), (1.3, "", None)],
)
def test_met_says_whether_the_ratio_reached_its_target(
    ratio: float, target: str, met: bool | None
) -> None:
    assert Row(name="x", value=0.0, unit="s", ratio=ratio, target=target).met is met


def test_without_a_ratio_the_target_speaks_of_the_value() -> None:
    assert Row(name="x", value=0.96, unit="", target=">= 0.95").met is True


def test_a_target_that_is_no_comparison_is_refused() -> None:
    with pytest.raises(ValueError, match=">= number"):
        _ = Row(name="x", value=1.0, unit="s", target="about 3").met


def test_a_results_file_names_machine_versions_and_commit(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.json", "answer", [ROW])
    report = json.loads((tmp_path / "a.json").read_text())
    assert {"machine", "versions", "commit", "created"} <= report.keys()
    assert report["rows"][0] == {
        "name": "ttft",
        "value": 30.0,
        "unit": "ms",
        "baseline": 3000.0,
        "ratio": 100.0,
        "ratio_span": None,
        "target": ">= 10",
        "met": True,
    }


def test_of_figures_that_took_turns_the_median_ratio_counts_and_its_span_is_told(
    tmp_path: Path,
) -> None:
    # The disk was twice as slow in the last turn: its ratio is the one of the others.
    row = rate_row("append", [8e9, 9e9, 4e9], [10e9, 10e9, 5e9], ">= 0.75")
    assert (row.value, row.baseline, row.ratio) == (8.0, 10.0, 0.8)
    assert row.ratio_span == (0.8, 0.9)
    assert row.met is True
    write_rows(tmp_path / "a.json", "store", [row])
    filled = fill("<!-- figures: a.json -->\n<!-- /figures -->\n", tmp_path)
    assert "| append | 8 GB/s | 10 GB/s | 0.8 (0.8 to 0.9) | >= 0.75 | yes |" in filled


def test_a_marked_table_is_replaced_by_the_file_it_names_and_then_stays(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.json", "answer", [ROW])
    text = "before\n<!-- figures: a.json -->\nold\n<!-- /figures -->\nafter\n"
    filled = fill(text, tmp_path)
    assert "| ttft | 30 ms | 3,000 ms | 100 | >= 10 | yes |" in filled
    assert "old" not in filled
    assert filled.startswith("before\n")
    assert filled.endswith("after\n")
    assert fill(filled, tmp_path) == filled
