"""trackio gets the numbers of a run, once each, in one run of its own however often ours was resumed."""

import json
import sqlite3
from pathlib import Path

import pytest

from dreamjax.storage.atomic import write_json
from dreamjax.storage.trackers import track
from tests.storage.tracked import write


def test_trackio_keeps_one_run_over_a_resume(tmp_path: Path) -> None:
    pytest.importorskip("trackio", reason="trackio needs a venv of its own: make test-adapters")
    write_json(tmp_path / "run" / "config.json", {"seed": 3})
    track(tmp_path / "run", ["trackio"])
    local = {"TRACKIO_DIR": str(tmp_path / "trackio"), "TRACKIO_PROJECT": "tests", "HF_HUB_OFFLINE": "1"}
    write(tmp_path / "run", 1, 3, **local)
    write(tmp_path / "run", 3, 4, **local)
    (database,) = (tmp_path / "trackio").glob("tests*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id").fetchall()
    assert len({name for name, *_ in rows}) == 1
    values = [(step, json.loads(metrics)) for _, step, metrics in rows]
    assert [(step, row["vision/loss"]) for step, row in values if "vision/loss" in row] == [
        (step, step / 2) for step in range(1, 5)
    ]
