"""Somebody else's learner in our dream: PPO of stable-baselines3 learns in it, then plays the real game.

Papers: Ha & Schmidhuber 2018, section 4; Schulman et al. 2017. A dream is an environment, so whatever trains in one can
train in it. V and M are those of a stored agent of Doom's Take Cover; what PPO sees are their features z, c and h. It
never meets the real game. There its network acts as a policy of ours, in JAX.

    learn     PPO in dreams of V and M, in `--steps` steps of them
    evaluate  it, the controller that was evolved in such dreams, and random play, in the same test episodes of the game
    report    films, a plot, result.json and a page to open

    python experiments/doom_ppo.py                          # '.[experiments,sb3]'
    python experiments/doom_ppo.py --world runs/doom        # in the dream of your own agent

The same command resumes after what is finished; PPO itself begins anew.
"""

from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax import dream
from dreamjax._extras import extra
from dreamjax.acting import random_play
from dreamjax.envs.vizdoom import TakeCover
from dreamjax.reporting import Section, curves, film_dream_and_real, pages, result_row
from dreamjax.storage import Change, MetricsLog, RunFolder, load_weights, read_metrics, save_weights
from dreamjax.storage.identity import fingerprint, pin
from dreamjax.storage.progress import progress
from dreamjax.training import stages
from dreamjax.training.experiment import (
    Options,
    command,
    exit_on_bad_input,
    read_command_line,
    run_folder,
    stored_agent,
)
from dreamjax.types import Action, Agent, AgentParams, Array, Environment, Key, Params, Policy, Space
from dreamjax.worldmodels import search

NAME = "doom_ppo"
UNIT = "tics survived"  # 35 a second
COMMITTED = Path(__file__).parent / "results" / "doom_take_cover"


@dataclass(frozen=True)
class Config:
    """Settings for two cores; PPO's own are those of stable-baselines3, unless they are here."""

    preset: str = "cpu"
    seed: int = 0
    world: Path | None = None  # the agent in whose dream PPO learns, a file or folder; otherwise the committed one
    steps: int = 1_000_000  # of dreams, at least
    envs: int = 32  # dreams at once
    rollout: int = 256  # steps of each between two rounds of learning
    batch: int = 512
    units: int = 64  # of both layers
    temperature: float = 1.5
    dream_steps: int = 1050  # of a dream that PPO learns in: half of the game's limit
    episodes: int = 100  # test episodes of the real game, for each contender
    dreams: int = 128  # that are scored, as long as the game
    film_steps: int = 1050
    max_steps: int = 2100  # of an episode of the real game


CPU = Config()
SMOKE = replace(
    CPU, preset="smoke", steps=64, envs=4, rollout=16, batch=16, units=4, dream_steps=10, episodes=1, dreams=2,
    film_steps=12, max_steps=40,
)  # fmt: skip
PRESETS = {config.preset: config for config in (CPU, SMOKE)}


def network(cfg: Config, features: int, action: Space) -> Policy:
    """The network of PPO as a policy of ours, which chooses the mean: two layers with tanh, clipped to the bounds."""
    sizes = [features, cfg.units, cfg.units, int(np.prod(action.shape))]

    def init(key: Key) -> Params:
        return [(jnp.zeros((a, b)), jnp.zeros(b)) for a, b in pairwise(sizes)]

    def act(params: Params, key: Key, features: Array) -> Action:
        *hidden, (weight, bias) = params
        for layer_weight, layer_bias in hidden:
            features = jnp.tanh(features @ layer_weight + layer_bias)
        mean = (features @ weight + bias).reshape(action.shape)
        return jnp.clip(mean, action.low_array, action.high_array).astype(action.dtype)

    return Policy(init, act)


def learned(learner: Any) -> Params:
    """Read the parameters of `network` from a learner."""
    layers = [learner.policy.mlp_extractor.policy_net[0], learner.policy.mlp_extractor.policy_net[2]]
    layers.append(learner.policy.action_net)
    return [tuple(part.detach().numpy().copy() for part in (layer.weight.T, layer.bias)) for layer in layers]


def learn(cfg: Config, log: MetricsLog, environment: Environment) -> Params:
    """Let PPO learn in an environment; return the parameters of `network`."""
    with extra("sb3", "this experiment"):
        from stable_baselines3 import PPO
        from stable_baselines3.common.vec_env import VecMonitor, VecNormalize

        from dreamjax.envs.sb3 import VectorEnv
    env = VecNormalize(VecMonitor(VectorEnv(environment, cfg.envs)), norm_obs=False)
    how: Any = {"policy_kwargs": {"net_arch": [cfg.units, cfg.units]}, "seed": cfg.seed, "device": "cpu"}
    learner: Any = PPO("MlpPolicy", env, n_steps=cfg.rollout, batch_size=cfg.batch, **how)
    with progress(cfg.steps, "learn", unit="step") as bar:

        def noted(local: dict[str, Any], _: dict[str, Any]) -> bool:
            bar.update(cfg.envs)
            if learner.num_timesteps % (cfg.envs * cfg.rollout) == 0 and learner.ep_info_buffer:
                lasted = np.mean([episode["l"] for episode in learner.ep_info_buffer])  # the last hundred
                log.write("learn", learner.num_timesteps, {"steps of a dream": lasted})
            return True

        learner.learn(cfg.steps, callback=noted)
    return learned(learner)


def report(cfg: Config, run: RunFolder, agent: Agent, params: AgentParams, evolved: tuple[Agent, AgentParams]) -> None:
    """Score, draw, film and summarise."""
    key_real, key_dream, key_film = jax.random.split(jax.random.key(cfg.seed), 3)
    make_env = partial(TakeCover, max_steps=cfg.max_steps)
    random = random_play.random_agent(agent.model.spec, "held"), random_play.PARAMS
    rows = [
        result_row(f"{name}, real", stages.evaluate(run, key_real, name, *contender, make_env, cfg.episodes), UNIT)
        for name, contender in {"PPO": (agent, params), "evolved": evolved, "random": random}.items()
    ]
    dreamed = search.score(agent, params, key_dream, cfg.dreams, cfg.temperature)
    rows.append(result_row("PPO, dream", np.asarray(dreamed), UNIT))
    sections = []
    if told := read_metrics(run.path / "metrics.jsonl").get("learn"):
        curves.learning_curves({"learn": told}, run.path / "learning.png")
        sections.append(Section("Learning", "How long its dreams lasted, over steps of dreams.", ["learning.png"]))
    film_dream_and_real(
        run.path / "dream_and_real.mp4", agent, params, make_env, key_film, cfg.film_steps, cfg.temperature
    )
    filmed = Section("PPO at play", "Left one of its dreams, right the real game.", ["dream_and_real.mp4"])
    new, old, by_chance = (row["mean"] for row in rows[:3])
    at_once = cfg.envs * cfg.rollout
    steps = -(-cfg.steps // at_once) * at_once  # in whole rollouts
    lead = (
        f"PPO of stable-baselines3, trained in {steps:,} steps of dreams alone, survives {new:.0f} tics in the "
        f"real game; the evolved controller {old:.0f}, random play {by_chance:.0f}."
    )
    pages.report(run, NAME, command(NAME, cfg, PRESETS), rows, "PPO in Doom's dream", [filmed, *sections], lead=lead)


@exit_on_bad_input()
def main() -> None:
    """Let PPO learn, unless that is done, and play."""
    cfg, options = read_command_line(NAME, __doc__, PRESETS, Options)
    run = run_folder(NAME, cfg, options, may_change=dict.fromkeys(("episodes", "dreams", "film_steps"), Change()))
    evolved = stored_agent(cfg.world or COMMITTED, "python experiments/doom_take_cover.py --preset cpu")
    model, params = evolved[0].model, evolved[1]
    pin(run.path, "model", fingerprint(params.model, params.starts, code=False))
    short = model._replace(spec=model.spec._replace(max_steps=cfg.dream_steps))
    environment = dream.environment(short, params.model, params.starts, cfg.temperature)
    policy = network(cfg, environment.spec.observation.shape[0], model.spec.action)
    path = run.path / "ppo.npz"
    if not (run.stage_done("learn") and path.exists()):
        with run.stage("learn"), MetricsLog(run.path) as log:
            log.rewind("learn", 0)
            save_weights(path, learn(cfg, log, environment))
            run.finish_stage("learn", {})
    weights = load_weights(path, policy.init(jax.random.key(0)))
    report(cfg, run, Agent(model, policy), params._replace(policy=weights), evolved)


if __name__ == "__main__":
    main()
