"""The summary page: complete, readable as HTML, and dependent on nothing outside its folder."""

from dataclasses import dataclass
from html.parser import HTMLParser

import numpy as np
import pytest

from dreamjax.reporting.pages import Section, put_section, report, write_summary
from dreamjax.reporting.results import read_result
from dreamjax.reporting.videos import write_image, write_video
from dreamjax.storage.folder import RunFolder
from dreamjax.storage.provenance import machine


@dataclass(frozen=True)
class Config:
    seed: int = 123456
    note: str = "a < b & c"
    sizes: tuple[int, ...] = (3, 4)
    preset: str = "cpu"


ROWS = [
    {"name": "dream <1.15>", "mean": 1092.34, "std": 556.07, "n": 100, "unit": "tics", "published": 1092},
    {"name": "random", "mean": 0.5, "std": 0.25, "n": 3, "unit": "", "published": None},
]


class Page(HTMLParser):
    """Collects the tables, links and headings, and checks that every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.links, self.cells, self.text = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in {"src", "href"}]
        if tag == "tr":
            self.cells.append([])
        if tag == "td":
            self.cells[-1].append("")
        if tag not in {"meta", "img", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if self.open and self.open[-1] == "td":
            self.cells[-1][-1] += data


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    folder = RunFolder(tmp_path / "run", Config())
    with folder.stage("vision"):
        folder.finish_stage("vision", {"loss": 3.14159, "frames": 120000})
    with folder.stage("memory"):
        pass
    with pytest.raises(KeyboardInterrupt), folder.stage("evolve"):
        raise KeyboardInterrupt
    write_image(folder.path / "plots" / "fitness_curve.png", np.zeros((4, 4, 3), np.uint8))
    (folder.path / "dream.gif").write_bytes(b"GIF89a")
    write_video(folder.path / "dream.mp4", np.zeros((2, 16, 16, 3), np.uint8), fps=10)
    return folder


def test_the_page_shows_everything_and_loads_nothing_from_elsewhere(folder):
    sections = [Section("Dreams & games", "What <it> does.", ["dream.mp4", "dream.gif"]), Section("Plots")]
    sections.append(Section("Curves", media=["plots/fitness_curve.png"]))
    path = write_summary(folder, "World <Models>", ROWS, sections, lead="In a dream.")
    assert path == folder.path / "summary.html"
    page = Page(path.read_text(encoding="utf-8"))
    assert set(page.links) == {"dream.mp4", "dream.gif", "plots/fitness_curve.png"}
    assert all((folder.path / link).is_file() for link in page.links)
    assert ["dream <1.15>", "1,092 ± 556 tics", "100", "1,092"] in page.cells
    assert ["random", "0.5000 ± 0.2500", "3", ""] in page.cells
    assert (
        ["note", "a < b & c"] in page.cells and ["seed", "123456"] in page.cells and ["sizes", "[3, 4]"] in page.cells
    )
    stages = [cells for cells in page.cells if cells[:1] in (["vision"], ["memory"], ["evolve"])]
    assert [cells[1] for cells in stages] == ["done", "done", "not finished"]
    assert stages[0][3] == "loss 3.142, frames 120000" and stages[0][2].endswith(" s")
    for text in ("World <Models>", "In a dream.", "Dreams & games", "What <it> does.", "Curves", "dream", machine()):
        assert text in page.text
    order = [page.text.index(heading) for heading in ("Dreams & games", "Results", "Curves", "Stages", "Configuration")]
    assert order == sorted(order)  # what there is to see comes first
    assert "http" not in path.read_text()


def test_a_run_without_results_or_sections_has_a_page_too(tmp_path):
    page = Page(write_summary(RunFolder(tmp_path, Config()), "Empty", []).read_text())
    assert "Results" not in page.text and "Stages" not in page.text and "Configuration" in page.text


def test_the_plan_of_a_run_is_on_its_page(folder):
    assert "What was planned" not in write_summary(folder, "run", ROWS).read_text()
    (folder.path / "plan.txt").write_text("  replay    1 < 2 GiB\n")
    page = Page(write_summary(folder, "run", ROWS).read_text())
    assert "  replay    1 < 2 GiB\n" in page.text and "What was planned" in page.text


def test_a_report_is_the_result_and_the_page(tmp_path, capsys):
    run = RunFolder(tmp_path, Config())
    with run.stage("evolve"):
        pass
    report(run, "doom", "python doom.py", ROWS, "Doom")
    result = read_result(tmp_path / "result.json")
    assert result["rows"] == ROWS and result["preset"] == "cpu" and result["seeds"] == [123456]
    assert result["wall_s"] == run.seconds and (result["commit"], result["machine"]) == run.origin
    lines = capsys.readouterr().out.splitlines()
    assert "1,092 ± 556 tics, 100 episodes" in lines[0] and lines[-1] == f"Open {tmp_path / 'summary.html'}"


def test_a_section_is_put_into_a_page_that_is_there(folder):
    assert put_section(folder.path, Section("How far?")) is None
    path = write_summary(folder, "World", ROWS, [Section("Dreams"), Section("How far?", "old"), Section("Plots")])
    before = Page(path.read_text())
    warned = Section("How far?", "new", ["dream.gif"], [ROWS[0] | {"interval": [1000.0, 1200.5]}], "Beware <of> it.")
    assert put_section(folder.path, warned) == path
    page = Page(path.read_text())
    assert [one for one in page.text if one in ("Dreams", "How far?", "old", "new", "Plots")] == [
        *("Dreams", "How far?", "new", "Plots")
    ]
    assert ["dream <1.15>", "1,092 [1,000, 1,200] tics", "100"] in page.cells and "Beware <of> it." in page.text
    put_section(folder.path, Section("Last", "of all"))
    text = Page(path.read_text()).text
    assert text.index("Last") > text.index("Plots") and text.index("Last") < text.index("Stages")
    assert set(map(tuple, before.cells)) < set(map(tuple, page.cells))
    path.write_text(path.read_text().replace("<!-- end of sections -->", ""))
    with pytest.raises(ValueError, match="older version"):
        put_section(folder.path, warned)


def test_media_must_exist_and_be_media(folder):
    with pytest.raises(FileNotFoundError, match=r"absent\.png is not in"):
        write_summary(folder, "x", [], [Section("a", media=["absent.png"])])
    with pytest.raises(ValueError, match="neither an image"):
        write_summary(folder, "x", [], [Section("a", media=["config.json"])])
    assert not (folder.path / "summary.html").exists()
