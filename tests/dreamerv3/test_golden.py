"""Every number of the golden files, through the importer, by the public functions."""

import json
import os
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dreamjax import distributions, optim, returns
from dreamjax.dreamerv3 import actor_critic, codec, config, filtering, heads, interop, rssm
from dreamjax.dreamerv3.actor_critic import Replayed, Trajectory
from dreamjax.dreamerv3.config import DreamerConfig
from dreamjax.dreamerv3.model import Dreamer, DreamerParams
from dreamjax.dreamerv3.rssm import RSSMState
from dreamjax.types import EnvSpec, Params, Space

FOLDER = Path(os.environ.get("DREAMJAX_GOLDEN", Path(__file__).resolve().parents[3] / "shared" / "golden"))
FILES = sorted(FOLDER.glob("*.npz"))
FLAGS = ("is_first", "is_last", "is_terminal")

Found = dict[str, jax.Array]  # by the names of the file, without the section's


def load(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The configuration, and all arrays by name."""
    with np.load(path) as file:
        arrays = dict(file)
    return json.loads(bytes(arrays.pop("meta")).decode()), arrays


def part(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays whose names begin with the prefix, without it."""
    return {name.removeprefix(prefix): x for name, x in arrays.items() if name.startswith(prefix)}


def dreamer_of(meta: dict[str, Any], arrays: dict[str, np.ndarray]) -> Dreamer:
    """The agent that a file was made with: sizes from its configuration, spaces from the shapes of its arrays."""
    params, data = part(arrays, "param/"), part(arrays, "in/data/")
    cfg = DreamerConfig(
        rssm=config.RSSMConfig(
            meta["deter"], meta["hidden"], meta["stoch"], meta["classes"], meta["blocks"], unimix=meta["unimix"]
        ),
        codec=config.CodecConfig(
            meta["depth"],
            tuple(meta["mults"]),
            meta["kernel"],
            meta["enc_layers"],
            meta["dec_layers"],
            meta["units"],
            blocks=len(params["dec/sp0/kernel"]) if "dec/sp0/kernel" in params else 8,
        ),
        heads=config.HeadsConfig(
            meta["units"],
            meta["bins"],
            meta["rew_layers"],
            meta["con_layers"],
            meta["pol_layers"],
            meta["val_layers"],
            min_std=meta["minstd"],
            max_std=meta["maxstd"],
        ),
        loss=config.LossConfig(free_nats=meta["free_nats"]),
        behaviour=config.BehaviourConfig(
            meta["imag_length"],
            meta["horizon"],
            meta["lam"],
            meta["actent"],
            slow_regularizer=meta["slowreg"],
        ),
        compute_dtype="float32",
    )
    actions = {name.split("/")[2] for name in params if name.startswith("pol/head/")}
    used = {*FLAGS, *actions, "reward", "consec", "stepid"}
    observation = {}
    for name, x in data.items():
        if name in used or name.startswith("dyn/"):
            continue
        if f"dec/vec/{name}/logits/bias" in params:
            count = len(params[f"dec/vec/{name}/logits/bias"]) // int(np.prod(x.shape[2:]))
            observation[name] = Space(x.shape[2:], x.dtype, 0, count)
        elif x.dtype == np.uint8:
            observation[name] = Space(x.shape[2:], x.dtype, 0, 256)
        else:
            observation[name] = Space(x.shape[2:], x.dtype)
    action = {}
    for name in sorted(actions):
        x = data[name]
        if f"pol/head/{name}/logits/bias" in params:
            count = len(params[f"pol/head/{name}/logits/bias"]) // int(np.prod(x.shape[2:]))
            action[name] = Space(x.shape[2:], x.dtype, 0, count)
        else:
            action[name] = Space(x.shape[2:], x.dtype, -1.0, 1.0)
    return Dreamer.of(cfg, EnvSpec(observation, action, 1))


pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"{FOLDER} does not exist")


class Golden:
    """One file, opened."""

    def __init__(self, path: Path) -> None:
        self.meta, self.arrays = load(path)
        self.dreamer: Dreamer = dreamer_of(self.meta, self.arrays)
        self.params: DreamerParams
        self.slow: Params
        self.params, self.slow = interop.import_published(self.dreamer, part(self.arrays, "param/"))
        self.cfg = self.dreamer.cfg

    def inputs(self, prefix: str) -> dict[str, jax.Array]:
        return {name: jnp.asarray(x) for name, x in part(self.arrays, f"in/{prefix}/").items()}

    def features(self, prefix: str) -> jax.Array:
        given = self.inputs(prefix)
        return rssm.features(RSSMState(given["deter"], given["stoch"]))

    def observed(self) -> dict[str, jax.Array]:
        """Observations without the context."""
        data = self.inputs("data")
        return {name: data[name][:, 1:] for name, _ in self.dreamer.observation}


@pytest.fixture(scope="module", params=FILES, ids=lambda path: path.stem)
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


def encoder(golden: Golden) -> Found:
    return {"tokens": heads.apply(golden.dreamer.encoder, golden.params.model.enc, golden.observed())}


def recurrence(golden: Golden) -> Found:
    given, cfg, params = golden.inputs("rssm"), golden.cfg.rssm, golden.params.model.dyn
    actions = {name: given[f"action/{name}"] for name, _ in golden.dreamer.action}
    action = codec.flatten_actions(golden.dreamer.action, actions, "float32")
    state = RSSMState(given["deter"], given["stoch"])
    deter = rssm.core(cfg, params, state, action)
    tokens = jnp.asarray(golden.arrays["out/enc/tokens"])[:, 0]
    after, logits = rssm.observe(cfg, params, jax.random.key(0), state, action, tokens, given["reset"])
    once = (actions[None] for actions in (action, tokens, given["reset"]))
    states, again = filtering.observe_sequence(cfg, params, jax.random.key(0), state, *once)
    np.testing.assert_allclose(states.deter[0], after.deter, 2e-5, 2e-5)
    np.testing.assert_allclose(again[0], logits, 2e-5, 2e-5)
    prior = rssm.prior(cfg, params, deter)
    return {"core_deter": deter, "prior_logit": prior, "observe/deter": after.deter, "observe/logit": logits}


def divergence(golden: Golden) -> Found:
    given = golden.inputs("kl")
    post, prior = (distributions.unimix(given[f"{name}_logit"], golden.cfg.rssm.unimix) for name in ("post", "prior"))
    return {
        "kl_post_prior": distributions.categorical_kl(post, prior).sum(-1),
        "post_entropy": distributions.categorical_entropy(post).sum(-1),
        "post_probs": jnp.exp(post),
    }


def decoder(golden: Golden) -> Found:
    given = golden.inputs("feat")
    out = heads.apply(golden.dreamer.decoder, golden.params.model.dec, given["deter"], given["stoch"])
    losses = codec.reconstruction_losses(golden.cfg.codec, golden.dreamer.observation, out, golden.observed())
    values = out.images | out.vectors | {name: x.argmax(-1) for name, x in out.logits.items()}
    return {f"loss/{name}": loss for name, loss in losses.items()} | {f"pred/{name}": x for name, x in values.items()}


def all_heads(golden: Golden) -> Found:
    given, feat, cfg = golden.inputs("heads"), golden.features("feat"), golden.cfg.heads
    dreamer, params, actors = golden.dreamer, golden.params, golden.dreamer.actor_critic
    reward = heads.apply(dreamer.reward, params.model.rew, feat)
    value = heads.apply(actors.critic, params.value, feat)
    logit = heads.apply(dreamer.continues, params.model.con, feat)
    outputs = {"rew": reward, "val": value, "slowval": heads.apply(actors.critic, golden.slow, feat)}
    found = {f"{name}/pred": heads.scalar_mean(cfg, x) for name, x in outputs.items()}
    found |= {"rew/logits": reward, "rew/loss": heads.scalar_loss(cfg, reward, given["reward"])}
    found |= {"val/loss": heads.scalar_loss(cfg, value, given["reward"])}
    found |= {"con/prob": jax.nn.sigmoid(logit), "con/loss": heads.continue_loss(logit, given["con"])}
    for name, distribution in heads.apply(actors.actor, params.policy, feat).items():
        one, key = {name: distribution}, f"pol/{name}"
        spaces = tuple(pair for pair in dreamer.action if pair[0] == name)
        found[f"{key}/logp"] = actor_critic.log_prob(one, {name: given[f"action/{name}"]}, spaces)
        found[f"{key}/entropy"] = actor_critic.entropies(one, spaces)[name]
        if isinstance(distribution, actor_critic.Normal):
            found |= {f"{key}/mean": distribution.mean, f"{key}/stddev": distribution.std}
        else:
            found[f"{key}/logits"] = distribution.log_probs
    return found


def imagination(golden: Golden) -> Found:
    given = golden.inputs("imag")
    actions = {name: jnp.swapaxes(given[f"action/{name}"], 0, 1)[:-1] for name, _ in golden.dreamer.action}
    features = jnp.swapaxes(golden.features("imag"), 0, 1)
    dreamer, params, settings = golden.dreamer, golden.params, golden.cfg.behaviour
    reward = heads.scalar_mean(golden.cfg.heads, heads.apply(dreamer.reward, params.model.rew, features))
    continues = jax.nn.sigmoid(heads.apply(dreamer.continues, params.model.con, features))
    trajectory = Trajectory(features, actions, reward, continues)
    learned = (params.policy, params.value, golden.slow)
    found = actor_critic.imagined_losses(
        dreamer.actor_critic, learned, returns.range_init(), trajectory, settings.entropy
    )
    return {
        "rew": reward.T,
        "con": continues.T,
        "ret": found.returns.T,
        "loss/policy": found.policy_loss.T,
        "loss/value": found.value_loss.T,
        "retnorm/lo/value": found.range.low,
        "retnorm/hi/value": found.range.high,
    }


def replayed_value(golden: Golden) -> Found:
    data, boot = golden.inputs("data"), golden.inputs("repl")["boot"]
    recorded = (data[name][:, 1:] for name in ("reward", "is_last", "is_terminal"))
    replayed = Replayed(golden.features("feat"), *recorded, boot)
    learned = (golden.params.value, golden.slow)
    discount = golden.cfg.behaviour.discount
    loss, ret = actor_critic.replayed_value_loss(golden.dreamer.actor_critic, learned, replayed, discount)
    return {"loss/repval": loss, "ret": ret}


def optimizer(golden: Golden) -> Found:
    found: Found = {}
    for setting in sorted({name.split("/")[0] for name in part(golden.arrays, "out/opt/")}):
        meta = golden.meta["opt_default"] | golden.meta[f"opt_{setting}"]
        names = ("lr", "warmup", "agc", "pmin", "beta1", "beta2", "eps")
        chain = optim.laprop(optim.LaPropConfig(*(meta[name] for name in names)))
        params = {name: jnp.asarray(golden.arrays[f"param/{name}"]) for name in part(golden.arrays, "in/opt/grad0/")}
        state = chain.init(params)
        steps = {int(name.split("/")[0].removeprefix("step")) for name in part(golden.arrays, f"out/opt/{setting}/")}
        for step in range(max(steps) + 1):
            grads = {name: golden.inputs(f"opt/grad{step}")[name] for name in params}
            updates, state = chain.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            found |= {f"{setting}/step{step}/{name}": x for name, x in params.items()}
    return found


SECTIONS = {
    "enc": encoder,
    "rssm": recurrence,
    "kl": divergence,
    "dec": decoder,
    "heads": all_heads,
    "imag": imagination,
    "repl": replayed_value,
    "opt": optimizer,
}
TOLERANCES = {"opt/": (1e-5, 1e-6), "imag/": (1e-4, 1e-4), "repl/": (1e-4, 1e-4), "heads/.*/pred": (1e-4, 1e-4)}


def test_there_are_golden_files():
    assert FILES, f"{FOLDER} holds no golden file"


def test_every_section_is_known(golden: Golden):
    assert {name.split("/")[0] for name in part(golden.arrays, "out/")} <= set(SECTIONS)


@pytest.mark.parametrize("section", SECTIONS)
def test_every_number_of_a_section(golden: Golden, section: str):
    wanted = part(golden.arrays, f"out/{section}/")
    found = SECTIONS[section](golden)
    assert found.keys() == wanted.keys()
    for name, right in wanted.items():
        assert found[name].shape == right.shape, name
        if re.fullmatch("heads/pol/.*/logits", f"{section}/{name}"):  # we keep them normalised
            right = np.asarray(jax.nn.log_softmax(jnp.asarray(right)))
        rtol, atol = next((x for key, x in TOLERANCES.items() if re.match(key, f"{section}/{name}")), (2e-5, 2e-5))
        np.testing.assert_allclose(found[name], right, rtol, atol * float(np.abs(right).max()), err_msg=name)


def test_export_is_the_inverse_of_import(golden: Golden):
    out = interop.export_published(golden.params, golden.slow)
    wanted = part(golden.arrays, "param/")
    assert out.keys() == wanted.keys()
    for name, x in out.items():
        np.testing.assert_array_equal(x, wanted[name])


def test_import_names_everything_that_is_wrong(golden: Golden):
    arrays = part(golden.arrays, "param/")
    del arrays["dyn/dyngru/bias"]
    arrays["rew/head/logits/bias"] = np.zeros(3, np.float32)
    with pytest.raises(ValueError, match=r"dyn/dyngru/bias is missing\n.*rew/head/logits/bias has shape"):
        interop.import_published(golden.dreamer, arrays)
