"""PPO on the four small tasks of dreamerv3_ablations.py, with as many steps: what DreamerV3 is compared with there.

Paper: Schulman et al. 2017. The algorithm is that of stable-baselines3, with one set of hyperparameters for all tasks:
those that its authors give for Atari, with normalised vectors and rewards. PPO sees one observation at a time, so
that `memory` is beyond it; `--recurrent` gives it an LSTM.

    python experiments/ppo.py                            # '.[experiments,sb3]'
    python experiments/ppo.py --recurrent
    python experiments/ppo.py --steps 122880              # ten times the experience
    python experiments/ppo.py --tasks gymnax_Breakout-MinAtar --steps 200000

Any other environment written in JAX is a task as well, by the name that dreamerv3_jax.py has for it. `result.json` has
a row for each: its return there, and for the four the scale of `envs.normalized`, 0 random play, 1 the best policy; a
row for all together where all have this scale.
"""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from dreamjax._extras import extra
from dreamjax.envs import check_environment, naming, normalized
from dreamjax.envs.normalized import Normalized
from dreamjax.reporting import Section, pages
from dreamjax.reporting.curves import return_curves
from dreamjax.reporting.intervals import runs_row
from dreamjax.storage import Change, MetricsLog, RunFolder, read_metrics
from dreamjax.storage.progress import progress
from dreamjax.training.experiment import Options, command, exit_on_bad_input, read_command_line, run_folder
from dreamjax.types import Environment

NAME = "ppo"
SCORE = "return, 0 random play, 1 the best"


@dataclass(frozen=True)
class Config:
    """What is trained, and for how long."""

    tasks: tuple[str, ...] = tuple(normalized.TASKS)
    seed: int = 0  # the first
    seeds: int = 5  # so many from there on
    steps: int = 12_288  # of the environment, of each seed; 7 % more than there, in whole rollouts
    recurrent: bool = False  # an LSTM between the network and its heads
    episodes: int = 100  # test episodes in which each trained agent is scored
    envs: int = 8  # stepped together
    rollout: int = 128  # steps of each between two rounds of learning
    preset: str = "cpu"

    @property
    def all_seeds(self) -> range:
        return range(self.seed, self.seed + self.seeds)


SMOKE = Config(("memory",), seeds=2, steps=64, episodes=4, envs=2, rollout=16, preset="smoke")
PRESETS = {"cpu": Config(), "smoke": SMOKE}
MAY_CHANGE = {"tasks": Change()}  # in a folder, of one run


def find(name: str) -> Normalized:
    """Find a task. What has no known best is on the scale of its own returns. Raises: ValueError if there is none."""
    if name in normalized.TASKS:
        return normalized.TASKS[name]()
    try:
        found = naming.find(name)
    except ValueError as error:
        raise ValueError(f"{error}. Tasks with a scale are {', '.join(normalized.TASKS)}") from None
    if not isinstance(found, Environment):
        raise ValueError(f"{name!r} is not written in JAX; this experiment learns in environments that are")
    check_environment(found)
    from dreamjax.envs.sb3 import VectorEnv

    VectorEnv(found, 1)  # what it refuses leaves no folder
    return Normalized(found, random=0.0, best=1.0)


def make(cfg: Config, seed: int, task: Normalized) -> Any:
    """Make the learner. The settings are those of rl-baselines3-zoo for Atari, without its schedules."""
    with extra("sb3", "this experiment"):
        from sb3_contrib import RecurrentPPO
        from stable_baselines3 import PPO
        from stable_baselines3.common.preprocessing import is_image_space
        from stable_baselines3.common.vec_env import VecMonitor, VecNormalize

        from dreamjax.envs.sb3 import VectorEnv
    pure = VectorEnv(task.environment, cfg.envs)
    is_image = is_image_space(pure.observation_space)
    env = VecNormalize(VecMonitor(pure), norm_obs=not is_image)
    kind, policy = (RecurrentPPO, "LstmPolicy") if cfg.recurrent else (PPO, "Policy")
    return kind(
        ("Cnn" if is_image else "Mlp") + policy,
        env,
        learning_rate=2.5e-4,
        n_steps=cfg.rollout,
        batch_size=min(256, cfg.envs * cfg.rollout),
        n_epochs=4,
        clip_range=0.1,
        ent_coef=0.01,
        seed=seed,
        device="cpu",
    )


def stage_of(name: str, seed: int) -> str:
    """Name a stage after a task, which may be package.module:factory, and a seed."""
    return re.sub(r"\W+", "-", f"{name}-{seed}")


def train(cfg: Config, learner: Any, log: MetricsLog, stage: str) -> None:
    """Learn for at least `steps` steps, in whole rollouts, and log the mean return of the episodes that end at one."""
    with progress(cfg.steps, stage, unit="step") as bar:

        def noted(local: dict[str, Any], _: dict[str, Any]) -> bool:
            ended = [info["episode"]["r"] for info in local["infos"] if "episode" in info]
            if ended:
                log.write(stage, learner.num_timesteps, {"return": np.mean(ended)})
            bar.update(cfg.envs)
            return True

        learner.learn(cfg.steps, callback=noted)


def evaluate(cfg: Config, learner: Any, seed: int, task: Normalized) -> float:
    """Play test episodes, whose actions are drawn as in training, and return their mean return."""
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.vec_env import VecMonitor, VecNormalize

    from dreamjax.envs.sb3 import VectorEnv

    pure = VectorEnv(task.environment, cfg.envs)
    pure.seed(2**31 + 1000 * seed)  # beyond those of training
    learned = learner.get_vec_normalize_env()
    env = VecNormalize(VecMonitor(pure), training=False, norm_reward=False, norm_obs=learned.norm_obs)
    if learned.norm_obs:
        env.obs_rms = learned.obs_rms
    return float(np.mean(evaluate_policy(learner, env, cfg.episodes, deterministic=False)[0]))


def learn(cfg: Config, run: RunFolder, log: MetricsLog, name: str, task: Normalized) -> np.ndarray:
    """Train and score all seeds in one task, unless that is done. Shapes: -> scores [seeds], on the task's scale."""
    for seed in cfg.all_seeds:
        stage = stage_of(name, seed)
        if run.stage_done(stage):
            continue
        log.rewind(stage, 0)
        with run.stage(stage):
            learner = make(cfg, seed, task)
            train(cfg, learner, log, stage)
            run.finish_stage(stage, {"return": evaluate(cfg, learner, seed, task)})
    return task.score(np.array([run.stage_record(stage_of(name, seed))["summary"]["return"] for seed in cfg.all_seeds]))


def report(cfg: Config, run: RunFolder, scores: dict[str, np.ndarray]) -> None:
    """Write one row for each task, and one for all where all have a scale, and draw how each seed learned."""
    called = "PPO with an LSTM" if cfg.recurrent else "PPO"
    units = {name: SCORE if name in normalized.TASKS else "return" for name in scores}
    rows = [runs_row(f"{called}, {name}", values, units[name]) for name, values in scores.items()]
    if set(units.values()) == {SCORE}:
        rows.insert(0, runs_row(called, np.stack(list(scores.values()), 1), SCORE))
    told = read_metrics(run.path / "metrics.jsonl")
    curves = {name: {f"seed {seed}": told[stage_of(name, seed)]["return"] for seed in cfg.all_seeds} for name in scores}
    return_curves(curves, run.path / "returns.png")
    sections = [Section("Learning", "Mean return of the training episodes that ended at a step.", ["returns.png"])]
    pages.report(run, NAME, command(NAME, cfg, PRESETS), rows, called, sections, seeds=cfg.all_seeds)


@exit_on_bad_input()
def main() -> None:
    """Train what is missing, and report."""
    cfg, options = read_command_line(NAME, __doc__, PRESETS, Options)
    tasks = {name: find(name) for name in cfg.tasks}
    run = run_folder(NAME, cfg, options, "recurrent" if cfg.recurrent else "", may_change=MAY_CHANGE)
    with MetricsLog(run.path) as log:
        scores = {name: learn(cfg, run, log, name, task) for name, task in tasks.items()}
    report(cfg, run, scores)


if __name__ == "__main__":
    main()
