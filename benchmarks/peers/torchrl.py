"""TorchRL's DreamerV3: its modules, joined by hand as its documentation has it, with its losses, optimizer and stepper.

Everything that ours learns is learned, in one update too. By its own defaults a stepper is not compiled on a CPU.
"""

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from tensordict import TensorDict
from tensordict.nn import (
    InteractionType,
    ProbabilisticTensorDictModule,
    ProbabilisticTensorDictSequential,
    TensorDictModule as Module,
    TensorDictModuleBase as AnyModule,
    TensorDictSequential as Chain,
)
from torchrl.data import Bounded, Composite, OneHot, Unbounded
from torchrl.envs.model_based.dreamer import DreamerEnv
from torchrl.modules import (
    DreamerV3DiscreteActor,
    DreamerV3ImageDecoder,
    DreamerV3ImageEncoder,
    DreamerV3MLP,
    RSSMPosteriorV3,
    RSSMPriorV3,
    RSSMRolloutV3,
    SymExpTwoHot,
    TanhNormal,
    WorldModelWrapper,
)
from torchrl.objectives import (
    DreamerV3ActorLoss,
    DreamerV3Loss,
    DreamerV3ModelLoss,
    DreamerV3ValueLoss,
    SoftUpdate,
    ValueEstimators,
    symlog,
)
from torchrl.trainers.algorithms import DreamerV3OptimizationStepper, DreamerV3Optimizer

LATENT = ["state", "belief"]
NEXT = [("next", name) for name in LATENT]


def build(task: dict[str, Any]) -> tuple[int, Callable[[], float]]:
    """Return the number of parameters, and a function that updates all of them on one invented batch."""
    losses, behaviour, bins = task["config"]["loss"], task["config"]["behaviour"], task["config"]["heads"]["bins"]
    world_model, dream, going_on = models(task)
    value = binned(mlp(task, "value", bins, outscale=0.0), task, LATENT, "state_value_logits", "state_value")
    model_loss = DreamerV3ModelLoss(
        world_model,
        lambda_continue=losses["continues"],
        continue_target_scale=1 - 1 / behaviour["discount_horizon"],
        kl_mode="separate",
        unimix=task["config"]["rssm"]["unimix"],
        num_reward_bins=bins,
        reco_symlog=False,  # targets are that already
        detach_output=False,  # the critic's loss on replayed steps trains the world model as well
    )
    model_loss.set_keys(pixels="target", reco_pixels="decoded")
    actor_loss = DreamerV3ActorLoss(
        actor(task),
        value,
        dream,
        continuation_model=going_on,
        imagination_horizon=behaviour["horizon"],
        use_reinforce=True,
    )
    actor_loss.make_value_estimator(ValueEstimators.TDLambda, gamma=1.0, lmbda=behaviour["mix"])
    value_loss = DreamerV3ValueLoss(
        value, "two_hot", num_value_bins=bins, actor_loss=actor_loss, slow_critic_regularization=1.0
    )
    loss = DreamerV3Loss(model_loss, actor_loss, value_loss, replay_value_loss_weight=losses["replay_value"])
    optimizer = DreamerV3Optimizer(loss.parameters())
    slow = SoftUpdate(value_loss, tau=behaviour["slow_rate"])
    stepper = DreamerV3OptimizationStepper(loss, optimizer, slow, compile_train_step=task["compiled"], warmup_steps=1)
    batch = invent(task)
    stepper.warmup(batch)

    def update() -> float:
        metrics = stepper.step(None, batch)
        return sum(float(one) for name, one in metrics.items() if name.startswith("loss_"))

    return sum(one.numel() for group in optimizer.param_groups for one in group["params"]), update


def widths(task: dict[str, Any]) -> tuple[int, int]:
    """Return the sizes of the stochastic and of the recurrent state."""
    rssm = task["config"]["rssm"]
    return rssm["stoch"] * rssm["classes"], rssm["deter"]


def mlp(task: dict[str, Any], head: str, out: int, **settings: Any) -> DreamerV3MLP:
    """Make a network that reads latent states, as deep and as wide as ours."""
    heads = task["config"]["heads"]
    return DreamerV3MLP(sum(widths(task)), out, heads[f"{head}_layers"], heads["units"], **settings)


def binned(network: DreamerV3MLP, task: dict[str, Any], reads: list[Any], logits: Any, writes: Any) -> AnyModule:
    """Let a network predict a number by its distribution over bins."""
    bins = SymExpTwoHot(task["config"]["heads"]["bins"])
    return Chain(Module(network, reads, [logits]), Module(bins, [logits], [writes]))


def models(task: dict[str, Any]) -> tuple[AnyModule, DreamerEnv, AnyModule]:
    """Make the world model, the environment in which it dreams, and what predicts that an episode goes on."""
    rssm, actions, (latent, deter) = task["config"]["rssm"], task["actions"], widths(task)
    encoder, decoder, encoded = codec(task)
    sizes = {"hidden_dim": rssm["hidden"], "rnn_hidden_dim": deter, "unimix": rssm["unimix"]}
    sizes |= {"num_categoricals": rssm["stoch"], "num_classes": rssm["classes"]}
    core = {"recurrent_model": "block_gru", "num_blocks": rssm["blocks"], "prior_num_layers": rssm["prior_layers"]}
    prior = RSSMPriorV3(action_shape=(actions,), action_dim=actions, **core, **sizes)
    posterior = RSSMPosteriorV3(obs_embed_dim=encoded, use_rms_norm=True, num_layers=rssm["posterior_layers"], **sizes)
    rollout = RSSMRolloutV3(
        Module(prior, [*LATENT, "action"], [("next", "prior_logits"), *NEXT]),
        Module(posterior, [NEXT[1], ("next", "encoded_latents")], [("next", "posterior_logits"), NEXT[0]]),
    )
    reward, continues = mlp(task, "reward", task["config"]["heads"]["bins"], outscale=0.0), mlp(task, "continue", 1)
    world_model = Chain(
        *(encoder, rollout, decoder),
        binned(reward, task, NEXT, ("next", "reward_logits"), ("next", "reward")),
        Module(continues, NEXT, [("next", "continue_pred")]),
    )
    transition = Module(prior, [*LATENT, "action"], ["_", *LATENT])
    dreamt = WorldModelWrapper(transition, binned(reward, task, LATENT, "reward_logits", "reward"))
    dream = DreamerEnv(dreamt, (latent,), (deter,))
    dream.observation_spec = Composite(state=Unbounded(latent), belief=Unbounded(deter))
    dream.state_spec = dream.observation_spec.clone()
    dream.action_spec = OneHot(actions) if task["discrete"] else Bounded(-1, 1, (actions,))
    dream.reward_spec = Unbounded((1,))
    going_on = Chain(Module(continues, LATENT, ["logit"]), Module(torch.nn.Sigmoid(), ["logit"], ["continuation"]))
    return world_model, dream, going_on


def codec(task: dict[str, Any]) -> tuple[AnyModule, AnyModule, int]:
    """Make encoder and decoder, and say how many values an encoded observation has."""
    sizes, features, shapes = task["config"]["codec"], sum(widths(task)), task["observation"]
    read, write = [("next", "target")], [("next", "encoded_latents")]
    if len(shapes[0]) == 3:
        height, width, colours = shapes[0]
        stages = {"depth": sizes["depth"], "mults": tuple(sizes["multipliers"]), "kernel_size": sizes["kernel"]}
        encoder = DreamerV3ImageEncoder(colours, **stages)
        decoder = DreamerV3ImageDecoder(features, (colours, height, width), num_blocks=sizes["blocks"], **stages)
        encoded = encoder.output_features((colours, height, width))
        return Module(encoder, read, write), Module(decoder, NEXT, [("next", "decoded")]), encoded
    size, units = sum(map(prod, shapes)), sizes["units"]
    encoder = Chain(
        Module(symlog, [("next", "observation")], read),
        Module(DreamerV3MLP(size, None, sizes["encoder_layers"], units), read, write),
    )
    decoder = DreamerV3MLP(features, size, sizes["decoder_layers"], units)
    return encoder, Module(decoder, NEXT, [("next", "decoded")]), units


def actor(task: dict[str, Any]) -> AnyModule:
    """Make the policy."""
    heads, actions = task["config"]["heads"], task["actions"]
    if task["discrete"]:
        return DreamerV3DiscreteActor(
            sum(widths(task)),
            actions,
            depth=heads["policy_layers"],
            num_cells=heads["units"],
            unimix=heads["policy_unimix"],
        )

    def spread(parameters: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        loc, scale = parameters.chunk(2, -1)
        return loc, (heads["max_std"] - heads["min_std"]) * torch.sigmoid(scale + 2) + heads["min_std"]

    return ProbabilisticTensorDictSequential(
        Module(mlp(task, "policy", 2 * actions, outscale=0.01), LATENT, ["parameters"]),
        Module(spread, ["parameters"], ["loc", "scale"]),
        ProbabilisticTensorDictModule(
            ["loc", "scale"],
            ["action"],
            distribution_class=TanhNormal,
            return_log_prob=True,
            log_prob_key="action_log_prob",
            default_interaction_type=InteractionType.RANDOM,
        ),
    )


def invent(task: dict[str, Any]) -> TensorDict:
    """Invent replayed sequences."""
    size, shapes, (latent, deter) = (task["batch"], task["length"]), task["observation"], widths(task)
    flag = lambda: torch.rand(*size, 1) < 0.01  # noqa: E731
    if len(shapes[0]) == 3:
        height, width, colours = shapes[0]
        observation = {"target": torch.randint(0, 256, (*size, colours, height, width), dtype=torch.uint8)}
    else:
        observation = {"observation": torch.randn(*size, sum(map(prod, shapes))).clamp(-1, 1)}
    if task["discrete"]:
        action = torch.nn.functional.one_hot(torch.randint(0, task["actions"], size), task["actions"]).float()
    else:
        action = torch.randn(*size, task["actions"]).clamp(-1, 1)
    arrived = {"reward": torch.randn(*size, 1), "done": flag(), "terminated": flag(), **observation}
    begin = {"state": torch.zeros(*size, latent), "belief": torch.zeros(*size, deter)}
    return TensorDict({**begin, "action": action, "is_init": flag(), "next": TensorDict(arrived, size)}, size)
