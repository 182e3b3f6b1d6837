"""A training that is interrupted ends in exactly the numbers of one that is not."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dreamjax.storage.folder import RunFolder
from dreamjax.storage.metrics import MetricsLog, read_metrics
from dreamjax.training.loop import train, updates
from dreamjax.types import Array, Metrics, Params

UPDATES = 13
OPTIMIZER = optax.adam(0.1)


@dataclass(frozen=True)
class Config:
    seed: int = 0


class Learner(NamedTuple):
    step: Array
    params: Params
    opt_state: optax.OptState


class KilledError(Exception):
    """Stands for the end of the process."""


def initial() -> Learner:
    params = {"w": jnp.linspace(-1.0, 1.0, 5)}
    return Learner(jnp.int32(0), params, OPTIMIZER.init(params))


@partial(jax.jit, donate_argnums=0)
def update(state: Learner, batch: np.ndarray) -> tuple[Learner, Metrics]:
    """Fit w to noisy targets; the noise is that of the step."""
    noise = jax.random.normal(jax.random.fold_in(jax.random.key(7), state.step), (5,))
    loss, grads = jax.value_and_grad(lambda p: jnp.square(p["w"] - batch - noise).sum())(state.params)
    updates, opt_state = OPTIMIZER.update(grads, state.opt_state)
    return Learner(state.step + 1, optax.apply_updates(state.params, updates), opt_state), {"loss": loss}


def batches(begin: int) -> Iterator[np.ndarray]:
    step = begin
    while True:
        yield np.random.default_rng(step).normal(size=5).astype(np.float32)
        step += 1


def run(
    folder: Path, update: Callable[..., Any] = update, batches: Callable[[int], Iterator[Any]] = batches
) -> Learner:
    with MetricsLog(folder) as log:
        run = RunFolder(folder, Config())
        loop = updates(update, batches)
        return train(run, log, "learn", initial(), loop, UPDATES, checkpoint_every=4, log_every=3)


def killed_at(count: int) -> Callable[[Learner, np.ndarray], tuple[Learner, Metrics]]:
    """An update during which the process ends the `count`-th time."""
    calls = iter(range(1, count))

    def dies(state: Learner, batch: np.ndarray) -> tuple[Learner, Metrics]:
        if next(calls, None) is None:
            raise KilledError
        return update(state, batch)

    return dies


def test_a_state_given_as_shapes_is_made_by_the_loop_and_read_where_there_is_one(tmp_path: Path) -> None:
    begun = []

    def loop(state: Any, step: int) -> Iterator[tuple[Any, Metrics]]:
        begun.append(state if state is shapes else int(state.step))
        return updates(update, batches)(state if step else initial(), step)

    folder, shapes = RunFolder(tmp_path, Config()), jax.eval_shape(initial)
    with MetricsLog(tmp_path) as log:
        train(folder, log, "learn", shapes, loop, 4, checkpoint_every=4)
        longer = train(folder, log, "learn", shapes, loop, UPDATES, checkpoint_every=4)
        with pytest.raises(ValueError, match="has 13 steps of learn already, more than the 4 that were"):
            train(folder, log, "learn", shapes, loop, 4)
        part = train(folder, log, "learn", shapes, loop, 4, is_all=False)
    assert int(part.step) == UPDATES
    assert begun == [shapes, 4]
    np.testing.assert_array_equal(longer.params["w"], run(tmp_path / "whole").params["w"])


def assert_same_run(state: Learner, folder: Path, reference: tuple[Learner, Path]) -> None:
    expected, other = reference
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    for left, right in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(left, right)
    (steps, losses), (other_steps, other_losses) = (
        read_metrics(path / "metrics.jsonl")["learn"]["loss"] for path in (folder, other)
    )
    np.testing.assert_array_equal(steps, other_steps)
    np.testing.assert_array_equal(losses, other_losses)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[Learner, Path]:
    """A training without interruption."""
    folder = tmp_path_factory.mktemp("reference")
    return run(folder), folder


def test_an_uninterrupted_training_is_a_loop(reference: tuple[Learner, Path]) -> None:
    """Metrics come every third update and after the last, each from its own update."""
    state, losses = initial(), []
    for _, batch in zip(range(UPDATES), batches(0), strict=False):
        state, metrics = update(state, batch)
        losses.append(float(metrics["loss"]))
    np.testing.assert_array_equal(state.params["w"], reference[0].params["w"])
    steps, logged = read_metrics(reference[1] / "metrics.jsonl")["learn"]["loss"]
    np.testing.assert_array_equal(steps, [3, 6, 9, 12, 13])
    np.testing.assert_array_equal(logged, np.array(losses)[steps - 1])


@pytest.mark.parametrize("kills", [[1], [3], [5], [8], [13], [2, 6, 3]])
def test_a_killed_training_ends_in_the_same_numbers(
    kills: list[int], reference: tuple[Learner, Path], tmp_path: Path
) -> None:
    """Before the first checkpoint (4), between checkpoints, at one, in the last update, and again and again."""
    for count in kills:
        with pytest.raises(KilledError):
            run(tmp_path, killed_at(count))
    assert_same_run(run(tmp_path), tmp_path, reference)


def test_it_goes_on_after_the_newest_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        run(tmp_path, killed_at(11))
    asked, done = [], []

    def noted_batches(begin: int) -> Iterator[np.ndarray]:
        asked.append(begin)
        return batches(begin)

    def noted_update(state: Learner, batch: np.ndarray) -> tuple[Learner, Metrics]:
        done.append(int(state.step))
        return update(state, batch)

    run(tmp_path, noted_update, noted_batches)
    assert asked == [8] and done == [8, 9, 10, 11, 12]


def test_a_finished_training_is_not_trained_again(reference: tuple[Learner, Path], tmp_path: Path) -> None:
    run(tmp_path)
    assert_same_run(run(tmp_path, killed_at(1)), tmp_path, reference)


@pytest.mark.parametrize("count", [11, UPDATES + 1])
def test_a_damaged_checkpoint_costs_only_time(count: int, reference: tuple[Learner, Path], tmp_path: Path) -> None:
    """The newest one; of a training that was killed, and of one that had finished."""
    if count <= UPDATES:
        with pytest.raises(KilledError):
            run(tmp_path, killed_at(count))
    else:
        run(tmp_path)
    checkpoints = tmp_path / "checkpoints" / "learn"
    newest = max((path for path in checkpoints.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
    assert newest.name == ("8" if count <= UPDATES else "13")
    largest = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 0xFF
    largest.write_bytes(data)
    with pytest.warns(UserWarning, match="is damaged"):
        state = run(tmp_path)
    assert_same_run(state, tmp_path, reference)
    assert (checkpoints / f"damaged-{newest.name}").exists()


def test_data_that_end_too_early_are_reported(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="data of stage 'learn' ended before step 6 of 13"):
        run(tmp_path, batches=lambda begin: iter([np.zeros(5, np.float32)] * 5))
    assert not RunFolder(tmp_path, Config()).stage_done("learn")


def test_its_time_is_recorded(reference: tuple[Learner, Path]) -> None:
    assert RunFolder(reference[1], Config()).stage_record("learn")["seconds"] > 0


def test_its_stage_is_done_when_all_updates_are(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, Config())
    with pytest.raises(KilledError):
        run(tmp_path, killed_at(11))
    assert not folder.stage_done("learn")
    run(tmp_path)
    assert folder.stage_done("learn")
    folder.write_json("stages/learn.json", folder.stage_record("learn") | {"done": False})  # killed after the last save
    run(tmp_path, killed_at(1))
    assert folder.stage_done("learn")
