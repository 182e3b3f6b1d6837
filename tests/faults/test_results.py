"""Results that would be wrong or lost: scores of something else, failed fitness, stages that seem unfinished."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from dreamjax import evolution
from dreamjax.evolution import EvolutionConfig, EvolutionState
from dreamjax.storage import Checkpoints, MetricsLog, RunFolder, read_metrics
from dreamjax.training.loop import generations, train
from dreamjax.types import Metrics


def test_a_run_goes_on_past_failures_and_ends_where_all_have_failed(tmp_path: Path) -> None:
    cfg, paid = EvolutionConfig(population_size=4), [jnp.array([1.0, jnp.inf, 2.0, -jnp.inf]), jnp.full(4, -jnp.inf)]

    def generation(state: EvolutionState, number: int) -> tuple[EvolutionState, Metrics]:
        state, population = evolution.ask(cfg, jax.random.key(number), state)
        return evolution.tell(cfg, state, population, paid[number])

    begin = evolution.init(cfg, jnp.zeros(4))
    settings: dict[str, Any] = {"checkpoint_every": 1, "log_every": 1}
    run = RunFolder(tmp_path, cfg)
    with (
        MetricsLog(tmp_path) as log,
        pytest.raises(FloatingPointError, match=r"all 4 individuals of generation 1 .*Look at what they are paid"),
    ):
        train(run, log, "evolve", begin, generations(generation), 2, **settings)
    known = read_metrics(tmp_path / "metrics.jsonl")["evolve"]
    assert (known["fitness_failed"][1].tolist(), known["fitness_mean"][1].tolist()) == ([2], [1.5])
    assert Checkpoints(tmp_path / "checkpoints" / "evolve").steps() == [1]
