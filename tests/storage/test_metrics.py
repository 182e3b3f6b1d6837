"""Metrics: one JSON line per step that survives kills and resumes, and the same numbers for TensorBoard."""

import json
import signal
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from dreamjax.storage.metrics import MetricsLog, read_metrics


def lists(metrics) -> dict:
    """Steps and values as lists, to compare at a glance."""
    return {
        stage: {name: (steps.tolist(), values.tolist()) for name, (steps, values) in names.items()}
        for stage, names in metrics.items()
    }


def write(folder, stage: str, rows: dict[int, dict]) -> None:
    with MetricsLog(folder) as log:
        for step, metrics in rows.items():
            log.write(stage, step, metrics)


def test_rows_come_back_by_stage_and_name(tmp_path):
    with MetricsLog(tmp_path) as log:
        log.write("vision", 0, {"loss": 3})
        log.write("vision", 10, {"loss": jnp.float32(1.5), "kl": np.float64(0.25)})
        log.write("memory", 0, {"loss": jnp.ones((1,), jnp.bfloat16)})
    metrics = read_metrics(tmp_path / "metrics.jsonl")
    assert lists(metrics) == {
        "vision": {"loss": ([0, 10], [3.0, 1.5]), "kl": ([10], [0.25])},
        "memory": {"loss": ([0], [1.0])},
    }
    steps, values = metrics["vision"]["loss"]
    assert steps.dtype == np.int64 and values.dtype == np.float64
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert set(rows[0]) == {"stage", "step", "seconds", "loss"}
    assert all(row["seconds"] >= 0 for row in rows)


def test_a_resumed_run_supersedes_what_came_after_its_checkpoint(tmp_path):
    write(tmp_path, "other", {100: {"loss": 9.0}})
    write(tmp_path, "vision", {step: {"loss": float(step)} for step in (10, 20, 30, 40)} | {41: {"score": 1.0}})
    write(tmp_path, "vision", {20: {"loss": -20.0}, 30: {"loss": -30.0}})
    assert lists(read_metrics(tmp_path / "metrics.jsonl")) == {
        "other": {"loss": ([100], [9.0])},
        "vision": {"loss": ([10, 20, 30], [10.0, -20.0, -30.0])},
    }


def test_one_step_may_have_several_rows_and_the_last_value_counts(tmp_path):
    with MetricsLog(tmp_path) as log:
        log.write("vision", 1, {"loss": 1.0})
        log.write("vision", 1, {"score": 2.0})
        log.write("vision", 1, {"loss": 3.0})
    assert lists(read_metrics(tmp_path / "metrics.jsonl")) == {"vision": {"loss": ([1], [3.0]), "score": ([1], [2.0])}}


def test_steps_do_not_go_back_while_a_log_is_open(tmp_path):
    with MetricsLog(tmp_path) as log:
        log.write("vision", 5, {"loss": 1.0})
        log.write("memory", 0, {"loss": 1.0})
        with pytest.raises(ValueError, match="step 4 of stage 'vision' comes after step 5"):
            log.write("vision", 4, {"loss": 1.0})


def test_a_torn_last_line_is_dropped_at_every_length(tmp_path):
    write(tmp_path, "vision", {0: {"loss": 1.0}, 1: {"loss": 2.0}})
    path = tmp_path / "metrics.jsonl"
    data = path.read_bytes()
    first = data.index(b"\n") + 1
    for length in range(first, len(data)):
        path.write_bytes(data[:length])
        assert lists(read_metrics(path)) == {"vision": {"loss": ([0], [1.0])}}
    write(tmp_path, "vision", {1: {"loss": 5.0}})  # nor does the next row stick to it
    assert lists(read_metrics(path)) == {"vision": {"loss": ([0, 1], [1.0, 5.0])}}


def test_any_other_broken_line_is_an_error_with_its_number(tmp_path):
    write(tmp_path, "vision", {0: {"loss": 1.0}})
    path = tmp_path / "metrics.jsonl"
    for broken in ('{"stage": "vis', "[1, 2, 3]", '{"stage": "vision", "loss": 1.0}', "3"):
        path.write_text(path.read_text().splitlines()[0] + "\n" + broken + "\n")
        with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 is not a row"):
            read_metrics(path)


def test_rows_written_before_a_kill_are_in_the_file(tmp_path):
    code = f"""
import os, signal
from dreamjax.storage.metrics import MetricsLog
log = MetricsLog({str(tmp_path)!r})
for step in range(100):
    log.write("vision", step, {{"loss": step / 2}})
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    steps, values = read_metrics(tmp_path / "metrics.jsonl")["vision"]["loss"]
    np.testing.assert_array_equal(steps, np.arange(100))
    np.testing.assert_array_equal(values, np.arange(100) / 2)


def test_seconds_go_on_where_the_last_log_stopped(tmp_path):
    write(tmp_path, "vision", {0: {"loss": 1.0}})
    path = tmp_path / "metrics.jsonl"
    row = json.loads(path.read_text()) | {"seconds": 1000.0}
    path.write_text(json.dumps(row) + "\n")
    write(tmp_path, "vision", {1: {"loss": 1.0}})
    assert json.loads(path.read_text().splitlines()[1])["seconds"] >= 1000.0


def test_values_that_are_not_finite_are_named_after_the_others_are_written(tmp_path):
    with MetricsLog(tmp_path) as log:
        values = {"loss": jnp.nan, "kl": 1.0, "norm": np.inf, "entropy": 2.0}
        with pytest.raises(FloatingPointError, match="at step 7 of stage 'vision': loss = nan, norm = inf"):
            log.write("vision", 7, values)
    assert lists(read_metrics(tmp_path / "metrics.jsonl")) == {"vision": {"kl": ([7], [1.0]), "entropy": ([7], [2.0])}}
    assert {tag for tag, _, _ in tensorboard_scalars(tmp_path)} == {"vision/kl", "vision/entropy"}


@pytest.mark.parametrize(
    ("metrics", "problem"),
    [({"loss": np.ones(2)}, "one number"), ({"loss": "a"}, "one number"), ({"step": 1}, "named")],
)
def test_what_is_no_scalar_is_refused_and_nothing_written(tmp_path, metrics, problem):
    with MetricsLog(tmp_path) as log, pytest.raises(ValueError, match=problem):
        log.write("vision", 0, metrics)
    assert read_metrics(tmp_path / "metrics.jsonl") == {}


def tensorboard_scalars(folder, stage="vision") -> list[tuple[str, int, float]]:
    """Every record is its length (8 bytes, and 4 of checksum), an event, and 4 bytes of checksum."""
    scalars = []
    for path in sorted((folder / "tensorboard" / stage).iterdir()):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + length])
            if event.session_log.status == SessionLog.START:  # as TensorBoard does
                scalars = [scalar for scalar in scalars if scalar[1] < event.step]
            scalars += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            data = data[16 + length :]
    return scalars


def test_tensorboard_gets_the_same_numbers(tmp_path):
    write(tmp_path, "vision", {0: {"loss": 1.5}, 10: {"loss": 0.5}})
    assert tensorboard_scalars(tmp_path) == [("vision/loss", 0, 1.5), ("vision/loss", 10, 0.5)]


def test_what_a_resumed_run_does_again_is_forgotten_before(tmp_path):
    write(tmp_path, "vision", {step: {"loss": float(step)} for step in (10, 20, 30)})
    with MetricsLog(tmp_path) as log:
        log.rewind("vision", 20)
        log.rewind("memory", 0)
        log.write("vision", 40, {"loss": -40.0})
    write(tmp_path, "memory", {5: {"loss": 5.0}})
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["stage"], row["step"]) for row in rows] == [
        ("vision", 10),
        ("vision", 20),
        ("vision", 40),
        ("memory", 5),
    ]
    seen = tensorboard_scalars(tmp_path, "vision")
    assert seen == [("vision/loss", 10, 10.0), ("vision/loss", 20, 20.0), ("vision/loss", 40, -40.0)]
