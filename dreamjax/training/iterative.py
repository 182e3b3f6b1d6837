"""Dream, play, learn, in turns: C evolves in dreams, plays, and M learns what was seen, so that it dreams better.

Source: the iterative procedure of Ha & Schmidhuber 2018, section 5, with V as it is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax import evolution
from dreamjax.acting.pool import FRESH, GamePool, Job
from dreamjax.evolution import EvolutionConfig, EvolutionState
from dreamjax.replay import latents
from dreamjax.replay.latents import Latents
from dreamjax.storage.agents import StoredAgent, load_agent, save_agent
from dreamjax.storage.folder import RunFolder
from dreamjax.storage.metrics import MetricsLog
from dreamjax.training.encode import encode_episodes, read_latents, write_latents
from dreamjax.training.stages import search_stage
from dreamjax.types import AnyPolicy, Key, LatentModel, Metrics, Params
from dreamjax.worldmodels import search
from dreamjax.worldmodels.search import Dreaming

Learn = Callable[[int, Sequence[Latents]], Params]


@dataclass(frozen=True)
class RoundsConfig:
    """How many rounds, and what each of them holds."""

    count: int = 10
    generations: int = 100  # in dreams
    dreams: int = 16  # per individual
    temperature: float = 1.0
    episodes: int = 256  # played by candidates of the last generation
    evaluation_episodes: int = 1024  # played by the mean of the distribution, always the same

    def __post_init__(self) -> None:
        if min(self.count, self.generations, self.dreams, self.episodes, self.evaluation_episodes) < 1:
            raise ValueError(f"a round needs at least one of each, got {self}")


class Player(NamedTuple):
    """What dreams and plays. `model` and `policy` are told apart by identity: make them once."""

    name: str  # of its stages, and of its folder
    model: LatentModel
    policy: AnyPolicy
    games: Callable[[], GamePool]  # opens those that it plays between dreams


def evolve_in_rounds(
    cfg: RoundsConfig,
    evolves: EvolutionConfig,
    run: RunFolder,
    log: MetricsLog,
    key: Key,
    player: Player,
    begun: StoredAgent,
    learn: Learn,
) -> StoredAgent:
    """Bring an agent through all rounds; return the one whose mean played best between dreams.

    Every round begins anew around the best controller so far, and what it evolved plays: candidates of the last
    generation, which go wrong in many ways, and the mean. To keep the best guards against those that know how to fool
    the dream, which it breeds too. `learn(n, seen)` goes on to teach M after round n, from what the rounds 1 to n saw,
    and returns the parameters of the world model. Killed at any moment, it goes on where it was.
    """
    agent = best = begun
    found = evolution.init(evolves, begun.controller)
    seen: list[Latents] = []
    for number in range(1, cfg.count + 1):
        key_dream, key_ask, key_play = jax.random.split(jax.random.fold_in(key, number), 3)
        if seen:
            agent = agent._replace(model=learn(number - 1, seen))
        dreaming = Dreaming(player.model, player.policy, agent.model, agent.starts, cfg.temperature)
        generation = partial(_generation, cfg, evolves, dreaming, key_dream, best.controller)
        found = search_stage(run, log, f"{player.name}-evolve", found, generation, number * cfg.generations)
        agent = agent._replace(controller=evolution.mean(evolves, found))
        _, population = evolution.ask(evolves, key_ask, found)
        seen.append(_play(cfg, run, log, key_play, player, agent, population, number))
        best = load_agent(run.path / player.name / "best.npz", player.model, player.policy)
    return best


def evaluation_jobs(candidate: int, episodes: int) -> list[Job]:
    """Games that tell how well a candidate plays: always the same, of no generation, and not those from `FRESH` on."""
    return [Job(candidate, FRESH // 2 + i) for i in range(episodes)]


def _generation(
    cfg: RoundsConfig,
    evolves: EvolutionConfig,
    dreaming: Dreaming,
    key: Key,
    best: Params,
    found: EvolutionState,
    number: int,
) -> tuple[EvolutionState, Metrics]:
    """Do generation `number` of all rounds."""
    if number % cfg.generations == 0:
        found = evolution.init(evolves, best)
    return search.generation(evolves, dreaming, jax.random.fold_in(key, number), found, cfg.dreams)


def _play(
    cfg: RoundsConfig,
    run: RunFolder,
    log: MetricsLog,
    key: Key,
    player: Player,
    agent: StoredAgent,
    population: Params,
    number: int,
) -> Latents:
    """Let what a round evolved play, unless that is done; keep the agent if it is the best; return what V saw."""
    path, name = run.path / player.name / f"{number:02}.npz", f"{player.name}-round"
    if not run.stage_done(f"{name}-{number:02}"):
        size = len(jax.tree.leaves(population)[0])
        key_seeds, key_games = jax.random.split(key)
        seeds = np.asarray(jax.random.randint(key_seeds, (cfg.episodes,), 0, FRESH // 2))
        jobs = [Job(i % size, int(seed)) for i, seed in enumerate(seeds)]
        jobs += evaluation_jobs(size, cfg.evaluation_episodes)
        players = jax.tree.map(lambda many, one: jnp.concatenate([many, one[None]]), population, agent.controller)
        posterior = partial(jax.jit(player.model.encode), agent.model)
        seen, totals = {}, np.zeros(len(jobs))
        with run.stage(f"{name}-{number:02}"):
            with player.games() as games:
                params = agent.model, players
                for ended in games.play(player.model, player.policy, params, key_games, jobs, record=True):
                    assert ended.episode is not None  # they are recorded
                    seen[ended.job] = encode_episodes([ended.episode], posterior)
                    totals[ended.job] = ended.played.total
            write_latents(path, latents.concatenate([seen[job] for job in range(len(jobs))]))
            candidates, means = np.split(totals, [cfg.episodes])
            before = [run.stage_record(f"{name}-{i:02}")["summary"]["evaluation_mean"] for i in range(1, number)]
            if means.mean() > max(before, default=-np.inf):
                save_agent(run.path / player.name / "best.npz", agent)
            played = {"candidates": candidates.mean(), "evaluation_mean": means.mean(), "evaluation_std": means.std()}
            log.write(name, number, played | {"frames": sum(len(one.mean) for one in seen.values())})
            run.finish_stage(f"{name}-{number:02}", played)
    return read_latents(path)
