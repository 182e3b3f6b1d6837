"""Result files become tables that say how each was made, and the tables in the READMEs are up to date."""

from pathlib import Path

import numpy as np
import pytest

from dreamjax.reporting import tables
from dreamjax.reporting.results import write_result
from dreamjax.reporting.tables import HIGHLIGHTS, RESULTS, Highlight, documents, section
from dreamjax.storage.provenance import commit, machine

REPO = Path(__file__).resolve().parents[2]
ROW = {"name": "dream | 1.15", "mean": 1092.34, "std": 556.07, "n": 100, "unit": "tics", "published": "1092 ± 556"}
OTHER = {"name": "random", "mean": np.float32(0.05), "std": 0, "unit": "", "published": None, "n": 3}


@pytest.mark.parametrize("path", documents(REPO), ids=lambda path: path.relative_to(REPO).as_posix())
def test_tables_are_up_to_date(path: Path) -> None:
    assert path.read_text() == documents(REPO)[path], "run `make table`"


def test_every_result_has_a_section_in_one_document() -> None:
    results = [*REPO.glob("experiments/results/**/result*.json"), *REPO.glob("benchmarks/results/**/*.json")]
    assert len(results) > 5
    text = "".join(path.read_text() for path in documents(REPO))
    assert [text.count(section(path)) for path in results] == [1] * len(results)


def test_the_readme_shows_a_few_rows() -> None:
    assert {folder: len(rows) for folder, rows in HIGHLIGHTS.items()} == {"experiments": 9, "benchmarks": 5}
    text = (REPO / "README.md").read_text()
    assert [text.count(f"| {one.shown} |") for rows in HIGHLIGHTS.values() for one in rows] == [1] * 14


def checkout(root: Path) -> Path:
    """Write the smallest checkout that has all tables."""
    for folder, pattern in RESULTS.items():
        path = root / folder / pattern.replace("*", folder)
        write_result(path, folder, "cpu", f"python {folder}.py; python {folder}.py -v", [0, 1], 7300, [ROW, OTHER])
        (root / folder / "README.md").write_text(f"before\n<!-- {folder} -->\nold\n<!-- /{folder} -->\nafter\n")
    (root / "README.md").write_text(
        "a\n<!-- experiments -->\n<!-- /experiments -->\nb\n<!-- benchmarks -->\n<!-- /benchmarks -->\n"
    )
    return root


def test_tables_are_written_between_their_marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"experiments": (Highlight("experiments", "random", "at random"),), "benchmarks": ()}
    monkeypatch.setattr(tables, "HIGHLIGHTS", rows)
    monkeypatch.chdir(checkout(tmp_path))
    (tmp_path / "experiments" / "results" / "experiments" / "README.md").write_text("Notes")
    tables.main()
    assert (tmp_path / "README.md").read_text().splitlines() == [
        *("a", "<!-- experiments -->", "|  | Measured | n |", "| --- | --- | --- |"),
        *("| at random | 0.05000 ± 0.00000 | 3 |", "<!-- /experiments -->"),
        *("b", "<!-- benchmarks -->", "|  | Measured | n |", "| --- | --- | --- |", "<!-- /benchmarks -->"),
    ]
    shown = f"{commit()[:12]}{commit().removeprefix(commit()[:40])}"  # "-dirty" stays
    made = f"Preset cpu; seeds 0, 1; 2.0 h on {machine()}; commit {shown}."
    assert (tmp_path / "experiments" / "README.md").read_text().splitlines() == [
        *("before", "<!-- experiments -->", "### experiments", ""),
        *("| Result | Measured | n | Published |", "| --- | --- | --- | --- |"),
        "| dream \\| 1.15 | 1,092 ± 556 tics | 100 | 1092 ± 556 |",
        *("| random | 0.05000 ± 0.00000 | 3 |  |", ""),
        *(f"{made} [Notes and plots](results/experiments/README.md).", ""),
        *("```bash", "python experiments.py", "python experiments.py -v", "```", "<!-- /experiments -->", "after"),
    ]
    assert made + "\n" in (tmp_path / "benchmarks" / "README.md").read_text()
    before = documents(tmp_path)
    tables.main()
    assert documents(tmp_path) == before == {path: path.read_text() for path in before}


def test_a_highlight_that_is_not_there_and_a_mark_that_is_not_there_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {"experiments": (), "benchmarks": (Highlight("benchmarks", "fast", "fast"),)}
    monkeypatch.setattr(tables, "HIGHLIGHTS", rows)
    with pytest.raises(ValueError, match="benchmarks has 0 rows 'fast'"):
        documents(checkout(tmp_path))
    monkeypatch.setattr(tables, "HIGHLIGHTS", rows | {"benchmarks": ()})
    (tmp_path / "README.md").write_text("<!-- experiments -->\n<!-- /experiments -->\n")
    with pytest.raises(ValueError, match=r"README\.md must have one <!-- benchmarks -->"):
        documents(tmp_path)


def test_a_section_is_not_made_of_a_file_of_another_form(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text('{"score": 3}')
    with pytest.raises(ValueError, match=r"old\.json is no valid result: needs"):
        section(tmp_path / "old.json")
