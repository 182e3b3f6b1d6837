"""Every number of the golden files, through the importer, by the public functions."""

import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dreamjax import distributions, optim, returns
from dreamjax.dreamerv3 import behaviour, codec, config, heads, interop, rssm
from dreamjax.dreamerv3.config import DreamerConfig
from dreamjax.dreamerv3.model import Dreamer, DreamerParams
from dreamjax.dreamerv3.rssm import RSSMState
from dreamjax.types import Params, Space

FOLDER = Path(os.environ.get("DREAMJAX_GOLDEN", Path(__file__).resolve().parents[3] / "shared" / "golden"))
FILES = sorted(FOLDER.glob("*.npz"))
FLAGS = ("is_first", "is_last", "is_terminal")


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
    return Dreamer.of(cfg, observation, action)


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

    def check(self, found: dict[str, jax.Array], rtol: float = 2e-5, atol: float = 2e-5) -> None:
        """Compare with the file's outputs of the same names; each must be there."""
        for name, x in found.items():
            wanted = self.arrays[f"out/{name}"]
            assert x.shape == wanted.shape, name
            np.testing.assert_allclose(x, wanted, rtol, atol * float(np.abs(wanted).max()), err_msg=name)


@pytest.fixture(scope="module", params=FILES, ids=lambda path: path.stem)
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


def test_there_are_golden_files():
    assert FILES, f"{FOLDER} holds no golden file"


def test_encoder(golden: Golden):
    data = golden.inputs("data")
    tokens = heads.apply(
        golden.dreamer.encoder, golden.params.enc, {k: data[k][:, 1:] for k, _ in golden.dreamer.observation}
    )
    golden.check({"enc/tokens": tokens})


def test_rssm(golden: Golden):
    given, cfg, params = golden.inputs("rssm"), golden.cfg.rssm, golden.params.dyn
    action = heads.flatten_actions(
        golden.dreamer.action, {k: given[f"action/{k}"] for k, _ in golden.dreamer.action}, "float32"
    )
    state = RSSMState(given["deter"], given["stoch"])
    deter = rssm.core(cfg, params, state, action)
    golden.check({"rssm/core_deter": deter, "rssm/prior_logit": rssm.prior(cfg, params, deter)})
    tokens = jnp.asarray(golden.arrays["out/enc/tokens"])[:, 0]
    after, logits = rssm.observe(cfg, params, jax.random.key(0), state, action, tokens, given["reset"])
    golden.check({"rssm/observe/deter": after.deter, "rssm/observe/logit": logits})


def test_kl(golden: Golden):
    given = golden.inputs("kl")
    post, prior = (distributions.unimix(given[f"{name}_logit"], golden.cfg.rssm.unimix) for name in ("post", "prior"))
    golden.check(
        {
            "kl/kl_post_prior": distributions.categorical_kl(post, prior).sum(-1),
            "kl/post_entropy": distributions.categorical_entropy(post).sum(-1),
            "kl/post_probs": jnp.exp(post),
        }
    )


def features(golden: Golden, prefix: str) -> jax.Array:
    given = golden.inputs(prefix)
    return rssm.features(RSSMState(given["deter"], given["stoch"]))


def test_decoder(golden: Golden):
    given, data = golden.inputs("feat"), golden.inputs("data")
    out = heads.apply(golden.dreamer.decoder, golden.params.dec, given["deter"], given["stoch"])
    seen = {k: data[k][:, 1:] for k, _ in golden.dreamer.observation}
    losses = codec.reconstruction_losses(golden.cfg.codec, golden.dreamer.observation, out, seen)
    golden.check({f"dec/loss/{name}": loss for name, loss in losses.items()})
    golden.check({f"dec/pred/{name}": x for name, x in (out.images | out.vectors).items()})
    golden.check({f"dec/pred/{name}": x.argmax(-1) for name, x in out.logits.items()}, 0, 0)


def test_heads(golden: Golden):
    given, feat, cfg = golden.inputs("heads"), features(golden, "feat"), golden.cfg.heads
    dreamer, params = golden.dreamer, golden.params
    reward = heads.apply(dreamer.reward, params.rew, feat)
    value = heads.apply(dreamer.critic, params.val, feat)
    golden.check({"heads/rew/logits": reward, "heads/rew/loss": heads.scalar_loss(cfg, reward, given["reward"])})
    golden.check({"heads/val/loss": heads.scalar_loss(cfg, value, given["reward"])})
    means = {"rew": reward, "val": value, "slowval": heads.apply(dreamer.critic, golden.slow, feat)}
    golden.check({f"heads/{name}/pred": heads.scalar_mean(cfg, x) for name, x in means.items()}, 1e-4, 1e-4)
    logit = heads.apply(dreamer.continues, params.con, feat)
    golden.check({"heads/con/prob": jax.nn.sigmoid(logit), "heads/con/loss": heads.continue_loss(logit, given["con"])})


def test_actor(golden: Golden):
    given, dreamer = golden.inputs("heads"), golden.dreamer
    found = heads.apply(dreamer.actor, golden.params.pol, features(golden, "feat"))
    for name, distribution in found.items():
        one, key = {name: distribution}, f"heads/pol/{name}"
        spaces = tuple(pair for pair in dreamer.action if pair[0] == name)
        golden.check({f"{key}/logp": heads.log_prob(one, {name: given[f"action/{name}"]}, spaces)})
        golden.check({f"{key}/entropy": heads.entropies(one, spaces)[name]})
        if isinstance(distribution, heads.Normal):
            golden.check({f"{key}/mean": distribution.mean, f"{key}/stddev": distribution.std})
        else:
            logits = golden.arrays[f"out/{key}/logits"]
            golden_log_probs = jax.nn.log_softmax(jnp.asarray(logits))
            np.testing.assert_allclose(distribution.log_probs, golden_log_probs, 2e-5, 2e-5)


def test_imagination(golden: Golden):
    given = golden.inputs("imag")
    actions = {name: jnp.swapaxes(given[f"action/{name}"], 0, 1)[:-1] for name, _ in golden.dreamer.action}
    time_first = jnp.swapaxes(features(golden, "imag"), 0, 1)
    args = (golden.dreamer, golden.params, golden.slow, time_first, actions, returns.range_init())
    found = behaviour.imagined_losses(*args)
    golden.check({"imag/rew": found.reward.T, "imag/con": found.continues.T, "imag/ret": found.returns.T}, 1e-4, 1e-4)
    golden.check({"imag/loss/policy": found.policy_loss.T, "imag/loss/value": found.value_loss.T}, 1e-4, 1e-4)
    golden.check({"imag/retnorm/lo/value": found.range.low, "imag/retnorm/hi/value": found.range.high}, 1e-4, 1e-4)


def test_replayed_value(golden: Golden):
    data, boot = golden.inputs("data"), golden.inputs("repl")["boot"]
    recorded = (data[name][:, 1:] for name in ("reward", "is_last", "is_terminal"))
    args = (golden.dreamer, golden.params, golden.slow, features(golden, "feat"), *recorded, boot)
    loss, ret = behaviour.replayed_value_loss(*args)
    golden.check({"repl/loss/repval": loss, "repl/ret": ret}, 1e-4, 1e-4)


@pytest.mark.parametrize("setting", ["default", "fast"])
def test_optimizer(golden: Golden, setting: str):
    meta = golden.meta["opt_default"] | (golden.meta[f"opt_{setting}"])
    cfg = optim.LaPropConfig(
        meta["lr"], meta["warmup"], meta["agc"], meta["pmin"], meta["beta1"], meta["beta2"], meta["eps"]
    )
    steps = sorted({name.split("/")[0] for name in part(golden.arrays, f"out/opt/{setting}/")})
    names = sorted(part(golden.arrays, "in/opt/grad0/"))
    params = {name: jnp.asarray(golden.arrays[f"param/{name}"]) for name in names}
    chain = optim.laprop(cfg)
    state = chain.init(params)
    for i, step in enumerate(steps):
        grads = {name: golden.inputs(f"opt/grad{i}")[name] for name in names}
        updates, state = chain.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        golden.check({f"opt/{setting}/{step}/{name}": x for name, x in params.items()}, 1e-5, 1e-6)


def test_every_output_is_checked_somewhere(golden: Golden):
    sections = {"/".join(name.split("/")[1:2]) for name in golden.arrays if name.startswith("out/")}
    assert sections <= {"enc", "rssm", "kl", "dec", "heads", "imag", "repl", "opt"}


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
