"""How fast an agent is evaluated in a host environment: by `acting.evaluate`, and by the loop that one writes first.

    python benchmarks/evaluation.py            some ten minutes on two cores
    python benchmarks/evaluation.py --smoke    a minute, to see that it runs; writes nothing

The committed agent plays 16 episodes of Doom. `evaluate` does so in two worker processes. The plain loop, which this
library had before, steps 8 environments of this process one after the other and then acts once for all of them; jitted
anew at each call, as it was, or kept. What a user waits for, compilation with all else, is measured with the caches of
JAX cleared before each call. All contenders play the same episodes, and the tics of each are its own.
"""

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import dreamjax
from dreamjax import rollout
from dreamjax.acting import seeds
from dreamjax.acting.evaluation import play_all
from dreamjax.envs.vizdoom import MAX_STEPS, TakeCover
from dreamjax.reporting.results import result_row, write_result
from dreamjax.types import Agent, AgentParams, Key, Step

REPO = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results" / "evaluation.json"
ENVS = 8  # of the plain loop
KEY = jax.random.key(0)

Act = Callable[..., Any]


def jitted(agent: Agent) -> Act:
    """Act on a batch of steps, with new programs."""

    def act(params: AgentParams, keys: Key, memories: Any, steps: Step) -> Any:
        return jax.vmap(rollout.step_policy(agent, params.model).act, (None, 0, 0, 0))(
            params.policy, keys, memories, steps
        )

    return jax.jit(act)


def arrived(frame: np.ndarray, reward: float = 0.0, is_first: bool = True) -> Step:
    """Make a step that is not the last of its episode."""
    flags: Any = (np.float32(reward), np.bool_(is_first), np.False_, np.False_)
    return Step(frame, *flags)


def plain(make_env: Callable[[], TakeCover], act: Act, start: Any, params: AgentParams, todo: list[int]) -> int:
    """Play an episode per seed, `ENVS` at once in this process; return the tics that were played."""
    envs, waiting = [make_env() for _ in range(min(ENVS, len(todo)))], iter(todo)
    playing: list[int | None] = [next(waiting, None) for _ in envs]
    count, tics, fold = np.zeros(len(envs), int), 0, jax.random.fold_in
    steps = [arrived(env.reset(seed=seed)[0]) for env, seed in zip(envs, playing, strict=True)]
    memories = jax.tree.map(lambda leaf: jnp.repeat(leaf[None], len(envs), 0), start)
    while any(seed is not None for seed in playing):
        numbers = jnp.array([seed or 0 for seed in playing], jnp.uint32)
        keys = jax.vmap(lambda seed, step: fold(fold(KEY, seed), step))(numbers, jnp.array(count))
        batch = jax.tree.map(lambda *leaves: np.stack(leaves), *steps)
        memories, actions = act(params, keys, memories, batch)
        for i, (env, action) in enumerate(zip(envs, np.clip(jax.device_get(actions), -1, 1), strict=True)):
            if playing[i] is None:
                continue
            frame, reward, terminated, truncated, _ = env.step(action)
            count[i], tics = count[i] + 1, tics + 1
            steps[i] = arrived(frame, reward, False)
            if terminated or truncated:
                playing[i], count[i] = next(waiting, None), 0
                if playing[i] is not None:
                    steps[i] = arrived(env.reset(seed=playing[i])[0])
    for env in envs:
        env.close()
    return tics


def measure(contenders: dict[str, Callable[[], int]], repeats: int) -> dict[str, np.ndarray]:
    """Call the contenders in turn; return the tics per second of each, [repeats]."""
    rate: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, play in contenders.items():
            begun = time.perf_counter()
            tics = play()
            rate[name].append(tics / (time.perf_counter() - begun))
            print(f"{name:32} {tics:6} tics {rate[name][-1]:8.1f} tics/s", flush=True)
    return {name: np.array(values) for name, values in rate.items()}


def main(smoke: bool) -> None:
    """Measure and write."""
    begun = time.monotonic()
    count, limit, repeats = (2, 30, 1) if smoke else (16, MAX_STEPS, 2)
    make_env, todo = partial(TakeCover, max_steps=limit), seeds.validation(count)
    agent, params = dreamjax.load(REPO / "experiments" / "results" / "doom_take_cover")
    start, kept = rollout.start(agent, params), jitted(agent)

    def evaluate() -> int:
        return sum(played.steps for played in play_all(agent, params, make_env, todo, KEY, workers=2))

    def anew() -> int:
        return plain(make_env, jitted(agent), start, params, todo)

    def cleared(play: Callable[[], int]) -> int:
        jax.clear_caches()
        return play()

    rows = []
    first: dict[str, Callable[[], int]] = {"evaluate": partial(cleared, evaluate), "plain loop": partial(cleared, anew)}
    warm: dict[str, Callable[[], int]] = {
        "evaluate": evaluate,
        "plain loop": anew,
        "plain loop, program kept": partial(plain, make_env, kept, start, params, todo),
    }
    for when, contenders in (("with compilation", first), ("", warm)):
        if not when:  # compile what is kept
            evaluate(), plain(make_env, kept, start, params, todo[:ENVS])
        rate = measure(contenders, repeats)
        label = f", {when}" if when else ", again"
        rows += [result_row(f"{name}{label}", values, "tics/s") for name, values in rate.items()]
        for name in list(rate)[1:]:
            rows.append(result_row(f"evaluate / {name}{label}", rate["evaluate"] / rate[name], "x"))
    print("\n".join(f"{row['name']:50} {row['mean']:8.2f} ± {row['std']:.2f} {row['unit']}" for row in rows))
    if not smoke:
        command = "python benchmarks/evaluation.py"
        write_result(RESULTS, "evaluation", "full", command, [0], time.monotonic() - begun, rows)


if __name__ == "__main__":
    main("--smoke" in sys.argv[1:])
