"""World Models on Doom, iteratively: M learns from the agent that was evolved in its dreams, and C is evolved again.

Paper: Ha & Schmidhuber 2018, section 5 (iterative training procedure), which left this for the future. Begins with the
agent of doom_take_cover, whose M saw only a random policy, which dies before many fireballs are in the air at once. C
is evolved in dreams alone here too: only M learns from the real game. V stays as it is.

    collect   a random policy acts, so that M does not forget what it saw there
    encode    every frame becomes a latent
    iterate   evolve C by CMA-ES in dreams; let it act in the real game; train M on that too; repeat
    evaluate  test episodes of the real game, with the agent at the beginning and with the best one after it

    python experiments/doom_iterative.py --folder runs/iterative
    python experiments/doom_iterative.py --preset smoke --folder runs/smoke

The same command resumes where it stopped. Every field of `Config` can be set; `--begin` is the folder of another agent.
`cpu` is meant for two cores. Measured: results/doom_iterative.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax
import numpy as np

from dreamjax.acting import Pool
from dreamjax.envs.vizdoom import TakeCover, take_cover_spec
from dreamjax.evolution import EvolutionConfig
from dreamjax.optim import AdamConfig
from dreamjax.reporting import Section, curves, film_dream_and_real, pages, published_at, result_row
from dreamjax.storage import Change, MetricsLog, RunFolder, load, read_metrics, save_agent
from dreamjax.storage.identity import fingerprint, pin
from dreamjax.training import IterativeConfig, learn_memory, stages, train_iteratively
from dreamjax.training.devices import splitting_mesh
from dreamjax.training.experiment import Options, command, exit_on_bad_input, read_command_line, run_folder
from dreamjax.training.iterative import iterations_done
from dreamjax.training.stages import Collect, TrainMemory
from dreamjax.trust import TrustConfig, beside, promise, trust_section
from dreamjax.types import Agent, AgentParams, Key
from dreamjax.worldmodels import DOOM, model, search

NAME = "doom_iterative"
COMMITTED = Path(__file__).parent / "results" / "doom_take_cover"
UNIT = "tics survived"  # 35 a second
OPERATION = ("episodes", "film_steps", "workers", "collect.workers", "collect.envs")
MAY_CHANGE = dict.fromkeys(("iterative.iterations", *OPERATION), Change())  # in a folder, of one run


@dataclass(frozen=True)
class Config:
    """Settings for two cores."""

    preset: str = "cpu"
    seed: int = 0
    begin: Path | None = None  # folder of the agent to begin with; the committed one if not given
    skill: int = 4  # of Doom; the scenario's own
    max_steps: int = 2100
    workers: int = 2
    envs: int = 16  # at once
    collect: Collect = Collect(1000, min_steps=101, policy="wandering", workers=2, envs=16)
    memory: TrainMemory = TrainMemory(1500, 16, 64, AdamConfig(2e-4, clip=1.0))  # per iteration
    evolution: EvolutionConfig = EvolutionConfig(population_size=64, sigma=0.1)
    iterative: IterativeConfig = IterativeConfig(
        10, generations=10, dream_episodes=8, temperature=1.5, episodes=32, evaluation_episodes=64
    )
    episodes: int = 100  # test episodes in which the agents are scored
    film_steps: int = 1050


CPU = Config()
SMOKE = replace(
    CPU,
    preset="smoke",
    max_steps=120,
    envs=4,
    collect=replace(CPU.collect, episodes=4, envs=4),
    memory=TrainMemory(2, streams=4, length=16, optimizer=CPU.memory.optimizer),
    evolution=EvolutionConfig(population_size=8, sigma=0.1),
    iterative=IterativeConfig(2, generations=2, dream_episodes=1, episodes=2, evaluation_episodes=2),
    episodes=2,
    film_steps=20,
)
PRESETS = {config.preset: config for config in (CPU, SMOKE)}


def make_env(cfg: Config) -> partial[TakeCover]:
    return partial(TakeCover, skill=cfg.skill, max_steps=cfg.max_steps)


def train(cfg: Config, run: RunFolder, key: Key, agent: Agent, begun: AgentParams) -> AgentParams:
    """Dream, act and learn in turns; return the agent that scored best while acting."""
    splitting_mesh("population", cfg.evolution.population_size, "evolution.population_size")  # refused at once
    key_learn, key_iterate = jax.random.split(key)
    with MetricsLog(run.path) as log:
        store = stages.collect(run, cfg.collect, make_env(cfg), agent.model.spec, cfg.seed)
        data = stages.encode(run, store, DOOM.vision, begun.model.vision)
        learn = learn_memory(run, log, key_learn, cfg.memory, DOOM, begun.model, data, seed=cfg.seed)
        open_pool = partial(Pool, make_env(cfg), cfg.envs, cfg.workers)
        iterate = partial(train_iteratively, open_pool=open_pool, name="iterated")
        return iterate(cfg.iterative, cfg.evolution, run, log, key_iterate, agent, begun, learn)


def score(cfg: Config, run: RunFolder, key: Key, agent: Agent, contenders: dict[str, AgentParams]) -> list[dict]:
    """Score agents in the real game, all in the same test episodes, and in their own dreams."""
    key_dream = jax.random.fold_in(key, 1)
    known = {"real, iterated": "1092 ± 556", "dream, iterated": "918 ± 546"}
    settings = {"at temperature {}": (cfg.iterative.temperature, 1.15), "not iterated": (True, False)}
    published = {name: published_at(text, settings) for name, text in known.items()}
    returns: dict[str, np.ndarray] = {}
    for name, params in contenders.items():
        real = stages.evaluate(run, key, name, agent, params, make_env(cfg), cfg.episodes)
        dreamed = search.score(agent, params, key_dream, cfg.episodes, cfg.iterative.temperature)
        returns |= {f"real, {name}": real, f"dream, {name}": np.asarray(dreamed)}
    return [result_row(name, values, UNIT, published.get(name)) for name, values in returns.items()]


def report(cfg: Config, run: RunFolder, rows: list[dict], key: Key, agent: Agent, params: AgentParams) -> None:
    """Draw and summarise."""
    metrics = read_metrics(run.path / "metrics.jsonl")
    frames, mean, std = curves.against_sum(
        metrics["iterated-iteration"], "frames", ("evaluation_mean", "evaluation_std")
    )
    error = std / np.sqrt(cfg.iterative.evaluation_episodes)
    panels = {"tics survived, and standard error": {"the real game": (frames, mean, error)}}
    axis = "tics played so far, beside those of the random policy"
    curves.series_with_bars(panels, axis, run.path / "iterations.png")
    curves.learning_curves({"memory": metrics["memory"]}, run.path / "learning.png")
    looks = TrustConfig(max(2, min(cfg.episodes, 32)), temperatures=beside(cfg.iterative.temperature))
    learned = promise.along_training(metrics, "iterated-evolve", "iterated-iteration")
    sections = [
        Section("A dream, and the real game", media=["dream_and_real.mp4"]),
        trust_section(run, agent, params, make_env(cfg), key, looks, learned),
        Section("Iteration by iteration", media=["iterations.png"]),
        Section("M learns", media=["learning.png"]),
    ]
    pages.report(run, NAME, command(NAME, cfg, PRESETS), rows, "World Models on Doom, iteratively", sections)


@exit_on_bad_input()
def main() -> None:
    """Do whatever the folder does not hold."""
    cfg, options = read_command_line(NAME, __doc__, PRESETS, Options)
    run = run_folder(NAME, cfg, options, may_change=MAY_CHANGE)
    key_train, key_evaluate = jax.random.split(jax.random.key(cfg.seed))
    agent, (_, begun) = model.make(DOOM, take_cover_spec(cfg.max_steps)), load(cfg.begin or COMMITTED)
    pin(run.path, "agent", fingerprint(begun, code=False))
    done = iterations_done(run, "iterated-iteration", cfg.iterative.iterations)
    if done < cfg.iterative.iterations or not (run.path / "agent.npz").exists():
        save_agent(run.path / "agent.npz", DOOM, agent, train(cfg, run, key_train, agent, begun), task="take_cover")
    _, iterated = load(run.path)
    rows = score(cfg, run, key_evaluate, agent, {"begun": begun, "iterated": iterated})
    film = run.path / "dream_and_real.mp4", agent, iterated, make_env(cfg), key_evaluate
    film_dream_and_real(*film, cfg.film_steps, cfg.iterative.temperature)
    report(cfg, run, rows, key_evaluate, agent, iterated)


if __name__ == "__main__":
    main()
