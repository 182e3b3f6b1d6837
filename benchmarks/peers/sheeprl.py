"""sheeprl's DreamerV3 in its version of 2025, `dreamer_v3_5`: its own preset of the size, and its own train step.

Everything that ours learns is learned, in one update too, from stored latent states; the slow critic moves as in its
loop. By its own defaults nothing is compiled.
"""

from collections.abc import Callable
from typing import Any

import hydra
import numpy as np
import torch
from gymnasium import spaces
from lightning.fabric import Fabric
from omegaconf import OmegaConf
from sheeprl.algos.dreamer_v3_5.agent import build_agent
from sheeprl.algos.dreamer_v3_5.dreamer_v3_5 import train, update_target_critic
from sheeprl.algos.dreamer_v3_5.utils import Moments
from sheeprl.utils.utils import dotdict


def build(task: dict[str, Any]) -> tuple[int, Callable[[], float]]:
    """Return the number of parameters, and a function that updates all of them on one invented batch."""
    cfg = configured(task)
    shapes = [shape or [1] for shape in task["observation"]]
    observed = spaces.Dict(
        {
            f"observed{i}": spaces.Box(-np.inf, np.inf, (shape[2], *shape[:2]) if len(shape) == 3 else tuple(shape))
            for i, shape in enumerate(shapes)
        }
    )
    torch.distributions.Distribution.set_default_validate_args(False)  # as its command does
    fabric = Fabric(accelerator="cpu", devices=1, precision="32-true")
    fabric.launch()
    actions = (task["actions"],)
    world_model, actor, critic, slow, _ = build_agent(fabric, actions, not task["discrete"], cfg, observed)
    parameters = [*world_model.parameters(), *actor.parameters(), *critic.parameters()]
    optimizer = hydra.utils.instantiate(cfg.algo.optimizer, params=parameters, _convert_="all")
    optimizer = fabric.setup_optimizers(optimizer)
    moments = cfg.algo.actor.moments
    moments = Moments(moments.decay, moments.max, moments.percentile.low, moments.percentile.high)
    batch = invent(task, observed, cfg)

    def update() -> float:
        latent, _ = train(fabric, cfg, world_model, actor, critic, slow, optimizer, moments, dict(batch), None, actions)
        update_target_critic(critic, slow, cfg.algo.critic.tau)
        return float(latent.float().sum())

    return sum(one.numel() for one in parameters), update


def configured(task: dict[str, Any]) -> dotdict:
    """Read its configuration of the task."""
    kind = "cnn" if task["discrete"] else "mlp"
    names = [f"observed{i}" for i in range(len(task["observation"]))]
    overrides = [
        *("exp=dreamer_v3_5", f"algo=dreamer_v3_5_{task['size'].upper()}"),
        f"algo.compile.enabled={task['compiled']}",
        "algo.compile.mode=default",  # the other one is made of CUDA graphs
        *("algo.cnn_keys.encoder=[]", "algo.mlp_keys.encoder=[]", f"algo.{kind}_keys.encoder=[{','.join(names)}]"),
    ]
    with hydra.initialize_config_module("sheeprl.configs", version_base="1.3"):
        whole = hydra.compose("config", overrides)
    algorithm = OmegaConf.to_container(whole.algo, resolve=True)
    return dotdict(algo=algorithm, env={"num_envs": 1}, fabric={"precision": "32-true"})


def invent(task: dict[str, Any], observed: spaces.Dict, cfg: dotdict) -> dict[str, torch.Tensor]:
    """Invent replayed sequences, after a step of context. Shapes: [1 + T, B, ...]."""
    size = (cfg.algo.replay_context + task["length"], task["batch"])
    model = cfg.algo.world_model
    data = {name: (torch.rand(*size, 1) < 0.01).float() for name in ("is_first", "terminated", "truncated")}
    data |= {
        "rewards": torch.randn(*size, 1),
        "deter": torch.zeros(*size, model.recurrent_model.recurrent_state_size).half(),
    }
    data["stoch"] = torch.zeros(*size, model.stochastic_size, dtype=torch.uint8)
    for name, space in observed.items():
        shape = (*size, *(space.shape or ()))
        is_image = len(shape) == len(size) + 3
        data[name] = torch.randint(0, 256, shape, dtype=torch.uint8) if is_image else torch.randn(shape).clamp(-1, 1)
    if task["discrete"]:
        chosen = torch.randint(0, task["actions"], size)
        return data | {"actions": torch.nn.functional.one_hot(chosen, task["actions"]).float()}
    return data | {"actions": torch.randn(*size, task["actions"]).clamp(-1, 1)}
