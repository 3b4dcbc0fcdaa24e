"""The page that `make soak` writes keeps what a run did not try."""

from __future__ import annotations

from pathlib import Path

import pytest
import soak_report
from soak_report import Outcome


def test_other_sections_stay(tmp_path: Path) -> None:
    path = tmp_path / "soak.md"
    soak_report.write_section(path, "B", "first")
    soak_report.write_section(path, "A", "other")
    strike = {"phase": "save", "kind": "clock", "recovery_s": 2.0}
    figures = {"work": "train", "strikes": [strike], "repeated": 3, "wanted": 30, "submissions": 2}
    soak_report.write_section(path, "B", soak_report.chaos_table([figures], 7, ["clock"]))
    text = path.read_text()
    assert text.index("## A\n\nother") < text.index("## B")
    assert "first" not in text
    assert "| train | 1 | 1 | 30 | 3 (10.0 %) | 2 |" in text
    assert "| clock | 1 | 1 | 2.0, 2.0 |" in text


def test_lines_of_other_tests_stay(tmp_path: Path) -> None:
    path = tmp_path / "soak.md"
    soak_report.write_cases(
        path, {"tests/b.py::test_b": Outcome(4, 1, 0, 60.0), "tests/a.py::test_a": Outcome(1, 0, 0)}
    )
    soak_report.write_cases(path, {"tests/b.py::test_b": Outcome(4, 0, 1, 90.0)})
    assert path.read_text().splitlines()[-2:] == [
        "| tests/a.py::test_a | 1 | 1 | 0 | 0 | 0.0 |",
        "| tests/b.py::test_b | 4 | 3 | 0 | 1 | 1.5 |",
    ]


def test_a_run_counts_its_cases(pytester: pytest.Pytester) -> None:
    """Through pytest itself, with the conftest.py of these tests."""
    pytester.makeconftest((Path(__file__).parent / "conftest.py").read_text())
    pytester.makeini("[pytest]\nmarkers = soak\n")
    folder = pytester.mkdir("tests")
    (folder / "test_it.py").write_text(
        "import pytest\n"
        "@pytest.mark.soak\n"
        "@pytest.mark.parametrize('n', range(3))\n"
        "def test_long(n):\n"
        "    assert n != 1\n"
        "def test_short():\n"
        "    pass\n"
    )
    pytester.runpytest("--soak-report", "soak.md", "tests")
    (line,) = [line for line in (pytester.path / "soak.md").read_text().splitlines() if "::" in line]
    assert "tests/test_it.py::test_long | 3 | 2 | 1 | 0 |" in line
    assert "::test_short" not in line
