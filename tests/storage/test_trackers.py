"""Trackers get the numbers of a run, once each, in one run of theirs however often ours was resumed."""

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dreamjax.storage.atomic import write_json
from dreamjax.storage.metrics import MetricsLog
from dreamjax.storage.trackers import track

WRITE = """
import sys
from dreamjax.storage.metrics import MetricsLog
folder, first, last = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with MetricsLog(folder) as log:
    log.rewind("vision", first - 1)
    for step in range(first, last + 1):
        log.write("vision", step, {"loss": step / 2})
    log.write("memory", last, {"loss": -1.0})
"""


def write(folder: Path, first: int, last: int, **environment: str) -> None:
    """Write steps in a process of its own, as a run or a resumed one does."""
    command = [sys.executable, "-c", WRITE, str(folder), str(first), str(last)]
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr


def wandb_rows(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """What offline runs hold, by the identity that `wandb sync` will send it under."""
    from wandb.proto import wandb_internal_pb2
    from wandb.sdk.internal import datastore

    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime):
        store = datastore.DataStore()
        store.open_for_scan(str(path))
        rows = found.setdefault(path.stem.removeprefix("run-"), [])
        while (data := store.scan_data()) is not None:
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "history":
                items = {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
                }
                rows.append({name: value for name, value in items.items() if not name.startswith("_")})
    return found


def test_wandb_keeps_one_run_over_a_resume(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {"seed": 3})
    write(tmp_path, 1, 2)  # before anybody asked for a tracker
    track(tmp_path, ["wandb"])
    offline = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_DIR": str(tmp_path)}
    write(tmp_path, 3, 5, **offline)
    write(tmp_path, 5, 6, **offline)  # step 5 came after the checkpoint, and is done again
    ((identity, rows),) = wandb_rows(tmp_path).items()
    assert identity == json.loads((tmp_path / "trackers.json").read_text())["wandb"]["id"]
    vision = [(row["vision/step"], row["vision/loss"]) for row in rows if "vision/step" in row]
    assert vision == [(step, step / 2) for step in range(1, 7)]
    assert [row["memory/step"] for row in rows if "memory/step" in row] == [2, 5, 6]


def test_trackio_keeps_one_run_over_a_resume(tmp_path: Path) -> None:
    write_json(tmp_path / "run" / "config.json", {"seed": 3})
    track(tmp_path / "run", ["trackio"])
    local = {"TRACKIO_DIR": str(tmp_path / "trackio"), "TRACKIO_PROJECT": "tests", "HF_HUB_OFFLINE": "1"}
    write(tmp_path / "run", 1, 3, **local)
    write(tmp_path / "run", 3, 4, **local)
    (database,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id").fetchall()
    assert len({name for name, *_ in rows}) == 1
    values = [(step, json.loads(metrics)) for _, step, metrics in rows]
    assert [(step, row["vision/loss"]) for step, row in values if "vision/loss" in row] == [
        (step, step / 2) for step in range(1, 5)
    ]


def test_a_tracker_is_named_once_and_dropped(tmp_path: Path) -> None:
    track(tmp_path, ["wandb", "trackio"])
    first = json.loads((tmp_path / "trackers.json").read_text())
    track(tmp_path, ["wandb"])
    assert json.loads((tmp_path / "trackers.json").read_text()) == {"wandb": first["wandb"]}
    track(tmp_path, [])
    with MetricsLog(tmp_path) as log:  # which opens none
        log.write("vision", 1, {"loss": 1.0})
    with pytest.raises(ValueError, match="there is no tracker neptune: use wandb, trackio"):
        track(tmp_path, ["neptune"])  # type: ignore[list-item]
