"""Trackers get the numbers of a run, once each, in one run of theirs however often ours was resumed."""

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from wandb.proto import wandb_internal_pb2

from dreamjax.storage.atomic import write_json
from dreamjax.storage.metrics import MetricsLog
from dreamjax.storage.trackers import track
from tests.storage.tracked import write


def records(data: bytes) -> Iterator[bytes]:
    """Read a log as LevelDB writes it, behind a header of 7 bytes: pieces of records in blocks of 32 KiB."""
    at, record = 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # where no head of a piece fits, a block ends with zeros
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])  # behind its checksum
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield record
            record = b""


def wandb_rows(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """What offline runs hold, by the identity that `wandb sync` will send it under."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime):
        rows = found.setdefault(path.stem.removeprefix("run-"), [])
        for data in records(path.read_bytes()):
            record = wandb_internal_pb2.Record.FromString(data)
            if record.WhichOneof("record_type") == "history":
                items = {"/".join(one.nested_key) or one.key: json.loads(one.value_json) for one in record.history.item}
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


def test_a_tracker_is_named_once_and_dropped(tmp_path: Path) -> None:
    track(tmp_path, ["wandb"])
    first = (tmp_path / "trackers.json").read_text()
    track(tmp_path, ["wandb", "wandb"])
    assert (tmp_path / "trackers.json").read_text() == first and list(json.loads(first)) == ["wandb"]
    track(tmp_path, [])
    with MetricsLog(tmp_path) as log:  # which opens none
        log.write("vision", 1, {"loss": 1.0})


def test_a_tracker_that_is_not_there_is_refused_before_it_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install -e '.\[trackio\]'"):
        track(tmp_path, ["trackio"])
    assert not (tmp_path / "trackers.json").exists()
    with pytest.raises(ValueError, match="there is no tracker neptune: use wandb, trackio"):
        track(tmp_path, ["neptune"])  # type: ignore[list-item]
