"""Where gradients go, and where they must not; and every technique that can be switched off."""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax import returns
from dreamjax.dreamerv3 import actor_critic, experience, heads, interop, learner
from dreamjax.dreamerv3.config import DreamerConfig, debug
from dreamjax.dreamerv3.model import Dreamer
from dreamjax.types import EnvSpec, Space

SPEC = EnvSpec({"vector": Space((5,))}, {"action": Space((), np.int32, 0, 3)}, 10)
BASE = replace(debug(), compute_dtype="float32")
# So that no loss is flat where it begins.
BASE = replace(BASE, heads=replace(BASE.heads, zero_init=False), loss=replace(BASE.loss, free_nats=0.0))
QUICK = {"xla_backend_optimization_level": 0}  # compiled in half the time, and run once


def drawn(dreamer: Dreamer) -> experience.Experience:
    """Two sequences of random experience, with an end inside."""
    rng = np.random.default_rng(0)

    def fill(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        shape = (2, 7, *leaf.shape)
        x = rng.normal(size=shape) if leaf.dtype == np.float32 else rng.integers(0, 2, shape)
        return x.astype(leaf.dtype)

    made = jax.tree.map(fill, experience.example(dreamer))
    no = np.zeros((2, 7), bool)
    ends = no.copy()
    ends[0, 3] = True
    step = made.step._replace(is_first=no, is_last=ends, is_terminal=ends)
    return jax.tree.map(jnp.asarray, made._replace(step=step))


@cache
def gradients(cfg: DreamerConfig) -> tuple[dict[str, float], dict[str, dict[str, dict[str, float]]]]:
    """Every loss, and the norm of its gradient by module and layer."""
    dreamer = Dreamer.of(cfg, SPEC)
    state = learner.init(dreamer, jax.random.key(0))
    batch = experience.as_batch(dreamer, drawn(dreamer))

    def losses(params):
        _, (_, trained) = learner.loss(dreamer, params, jax.random.key(1), state, batch)
        named = {name.removeprefix("loss/"): x for name, x in trained.metrics.items() if name.startswith("loss/")}
        return named, named

    found, values = jax.jit(jax.jacrev(losses, has_aux=True), compiler_options=QUICK)(state.params)
    norm = lambda tree: float(sum(jnp.abs(leaf).sum() for leaf in jax.tree.leaves(tree)))  # noqa: E731
    reached = {
        loss: {
            module: {layer: norm(leaves) for layer, leaves in part.items()}
            for module, part in interop.modules(grads).items()
        }
        for loss, grads in found.items()
    }
    return {name: float(x) for name, x in values.items()}, reached


def modules(cfg: DreamerConfig, loss: str) -> set[str]:
    return {module for module, layers in gradients(cfg)[1][loss].items() if sum(layers.values()) > 0}


@pytest.mark.parametrize(
    ("loss", "reached"),
    [
        ("reconstruction/vector", {"enc", "dyn", "dec"}),
        ("reward", {"enc", "dyn", "rew"}),
        ("continues", {"enc", "dyn", "con"}),
        ("dynamics", {"enc", "dyn"}),
        ("representation", {"enc", "dyn"}),
        ("policy", {"pol"}),
        ("value", {"val"}),
        ("replay_value", {"enc", "dyn", "val"}),
    ],
)
def test_each_loss_trains_what_it_should_and_nothing_else(loss: str, reached: set):
    assert modules(BASE, loss) == reached


def test_the_two_sides_of_the_divergence():
    reached = gradients(BASE)[1]
    prior = ("prior0", "prior1", "priorlogit")
    assert all(reached["dynamics"]["dyn"][name] > 0 for name in prior)
    assert all(reached["representation"]["dyn"][name] == 0 for name in prior)
    losses = gradients(BASE)[0]
    assert losses["dynamics"] == pytest.approx(losses["representation"])


def changed(part: str, **settings) -> DreamerConfig:
    return replace(BASE, **{part: replace(getattr(BASE, part), **settings)})


def test_the_model_can_be_trained_without_reconstruction_or_without_rewards():
    blind = changed("loss", reconstruction_gradient=False, reward_value_gradient=False)
    assert modules(blind, "reconstruction/vector") == {"dec"}
    assert modules(blind, "reward") == {"rew"}
    assert modules(blind, "continues") == {"con"}
    assert modules(blind, "replay_value") == {"val"}
    assert gradients(blind)[0] == pytest.approx(gradients(BASE)[0])  # only gradients differ


def test_free_nats_flatten_a_small_divergence():
    generous = changed("loss", free_nats=1000.0, kl_balance=False, replay_value=0.0)
    losses = gradients(generous)[0]
    assert losses["dynamics"] == 1000
    assert modules(generous, "dynamics") == set()
    assert {"representation", "replay_value"} & losses.keys() == set()


def test_one_divergence_without_balance_trains_both_sides():
    alike = changed("loss", kl_balance=False)
    losses, reached = gradients(alike)
    assert losses["dynamics"] == pytest.approx(gradients(BASE)[0]["dynamics"])
    assert reached["dynamics"]["dyn"]["priorlogit"] > 0
    assert reached["dynamics"]["dyn"]["obslogit"] > gradients(BASE)[1]["dynamics"]["dyn"]["obslogit"]


def test_regression_in_symlog_space_instead_of_two_hot():
    plain = changed("heads", twohot=False)
    losses = gradients(plain)[0]
    assert all(np.isfinite(x) for x in losses.values())
    assert modules(plain, "replay_value") == {"enc", "dyn", "val"}
    output = jnp.array([[0.5], [-2.0]])
    np.testing.assert_allclose(heads.scalar_mean(plain.heads, output), [np.expm1(0.5), -np.expm1(2.0)], rtol=1e-6)
    target = jnp.array([np.expm1(1.5), 0.0])
    np.testing.assert_allclose(heads.scalar_loss(plain.heads, output, target), [1.0, 4.0], rtol=1e-6)


def test_regression_of_numbers_as_they_are_with_a_huber_loss():
    plain = changed("heads", twohot=False, huber=True)
    assert all(np.isfinite(x) for x in gradients(plain)[0].values())
    assert modules(plain, "value") == {"val"} and modules(plain, "reward") == {"enc", "dyn", "rew"}
    output = jnp.array([[0.5], [-2000.0]])
    np.testing.assert_allclose(heads.scalar_mean(plain.heads, output), [0.5, -2000.0])
    loss = partial(heads.scalar_loss, plain.heads)
    np.testing.assert_allclose(loss(output, jnp.array([0.5, 1.0])), [0.0, np.hypot(2001.0, 1.0) - 1.0], rtol=1e-6)
    slope = jax.grad(lambda x: loss(jnp.array([x]), jnp.float32(0)))  # about the error, and no steeper than 1
    assert slope(0.01) == pytest.approx(0.01, rel=1e-3) and slope(1000.0) == pytest.approx(1.0, rel=1e-3)
    with pytest.raises(ValueError, match="set twohot to False"):
        changed("heads", huber=True)


@pytest.mark.parametrize(
    ("part", "fields", "why"),
    [
        ("rssm", {"classes": 257}, "as bytes"),
        ("rssm", {"posterior_layers": 0}, "positive"),
        ("heads", {"bins": 1}, "2 bins"),
        ("heads", {"value_layers": 0}, "at least 1"),
    ],
)
def test_sizes_that_would_go_wrong_later_are_refused(part: str, fields: dict[str, int], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        changed(part, **fields)
    with pytest.raises(ValueError, match="context must be 0 or more"):
        DreamerConfig(context=-1)


def imagined(**settings) -> tuple[np.ndarray, np.ndarray]:
    """Policy loss of a fixed imagined trajectory, and its advantages in units of reward."""
    cfg = replace(BASE, behaviour=replace(BASE.behaviour, **settings))
    dreamer = Dreamer.of(cfg, SPEC)
    params = learner.init(dreamer, jax.random.key(0)).params
    rng = np.random.default_rng(1)
    features = jnp.asarray(rng.normal(size=(4, 3, cfg.rssm.deter + cfg.rssm.stoch * cfg.rssm.classes)), jnp.float32)
    actions = {"action": jnp.asarray(rng.integers(0, 3, (3, 3)), jnp.int32)}
    reward, going = (jnp.asarray(x, jnp.float32) for x in (100 * rng.normal(size=(4, 3)), np.full((4, 3), 0.9)))
    parts = (params.policy, params.value, params.value)
    trajectory = actor_critic.Trajectory(features, actions, reward, going)
    actors = dreamer.actor_critic
    found = actor_critic.imagined_losses(actors, parts, returns.ReturnRange(*jnp.zeros(2)), trajectory, 0.0)
    value = actor_critic.value(actors)(params.value, features[:-1])
    return np.asarray(found.policy_loss), np.asarray(found.returns - value)


def test_advantages_are_normalised_in_place_of_returns():
    bare, advantage = imagined(normalize_returns=False)
    found, _ = imagined(normalize_returns=False, normalize_advantages=True)
    standard = (advantage - advantage.mean()) / advantage.std()
    # Without entropy, the loss of a step is proportional to its advantage.
    np.testing.assert_allclose(found * advantage, bare * standard, rtol=1e-4, atol=1e-4)
    assert np.abs(bare).max() > 50 * np.abs(found).max()  # rewards of 100 reach the actor only in one of them


def test_zero_initialisation():
    for zero in (True, False):
        dreamer = Dreamer.of(changed("heads", zero_init=zero), SPEC)
        params = learner.init(dreamer, jax.random.key(0)).params
        kernels = [params.model.rew["head/logits"]["kernel"], params.value["head/logits"]["kernel"]]
        assert all(bool((kernel == 0).all()) == zero for kernel in kernels)


def test_without_the_slow_critic_only_the_returns_count():
    free, held = gradients(changed("behaviour", slow_regularizer=0.0))[0], gradients(BASE)[0]
    assert free["value"] < held["value"]
    assert free["replay_value"] < held["replay_value"]
    same = ("policy", "reward", "reconstruction/vector")
    assert [free[name] for name in same] == pytest.approx([held[name] for name in same])


def test_without_unimix_latents_may_be_certain():
    from dreamjax.distributions import unimix

    logits = jnp.array([100.0, 0.0])
    assert float(jnp.exp(unimix(logits, 0.0))[1]) == pytest.approx(0)
    assert float(jnp.exp(unimix(logits, 0.01))[1]) == pytest.approx(0.005)
    assert np.isfinite(gradients(changed("rssm", unimix=0.0))[0]["dynamics"])


def test_rematerialisation_changes_nothing_but_the_memory():
    values, reached = gradients(BASE)
    again_values, again_reached = gradients(replace(BASE, rematerialize=True))
    assert again_values == pytest.approx(values, rel=1e-5)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), again_reached, reached)
    dreamer = Dreamer.of(replace(BASE, rematerialize=True), SPEC)
    state = jax.eval_shape(partial(learner.init, dreamer), jax.random.key(0))
    program = jax.make_jaxpr(partial(experience.learn, dreamer))(jax.random.key(1), state, drawn(dreamer))
    assert str(program).count("remat") >= 4
