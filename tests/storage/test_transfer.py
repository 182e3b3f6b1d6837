"""What another run has learned is taken over by name, and what does not fit is listed."""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.dreamerv3 import Dreamer, debug, learner, model
from dreamjax.storage.agents import save_agent
from dreamjax.storage.transfer import Begin, load_into, transfer
from dreamjax.types import AgentParams, EnvSpec, Space


class Params(NamedTuple):
    model: dict
    policy: dict


def params(value: float, actions: int = 2) -> Params:
    layer = {"kernel": jnp.full((3, 4), value), "bias": jnp.full((4,), value)}
    return Params(
        {"enc": layer, "dyn": {"kernel": jnp.full((actions, 4), value)}}, {"kernel": jnp.full((4, actions), value)}
    )


def means(tree: Params) -> dict[str, float]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): float(leaf.mean()) for path, leaf in leaves}


def test_leaves_are_taken_by_pattern() -> None:
    found = transfer(params(0.0), params(1.0), ["model/*"], ["*/bias"], "there")
    assert means(found) == {
        "model/dyn/kernel": 1.0,
        "model/enc/bias": 0.0,
        "model/enc/kernel": 1.0,
        "policy/kernel": 0.0,
    }


def test_everything_that_does_not_fit_is_listed() -> None:
    with pytest.raises(ValueError) as error:
        transfer(params(0.0, actions=5), params(1.0), ["*"], [], "runs/other")
    assert str(error.value).splitlines() == [
        "runs/other does not fit what is to begin with it:",
        "  model/dyn/kernel: there float32[2,4], here float32[5,4]",
        "  policy/kernel: there float32[4,2], here float32[4,5]",
        "Leave these out, by name or by pattern, and they begin anew; or train what they were made for.",
    ]
    found = transfer(params(0.0, actions=5), params(1.0), ["*"], ["model/dyn/*", "policy/*"], "runs/other")
    assert means(found)["model/enc/kernel"] == 1.0 and found.policy["kernel"].shape == (4, 5)


def test_leaves_of_one_side_alone_do_not_fit_either() -> None:
    more = params(1.0)._replace(policy={"kernel": jnp.ones((4, 2)), "bias": jnp.ones(2)})
    with pytest.raises(ValueError, match="policy/bias: there, not here"):
        transfer(params(0.0), more, ["*"], [], "there")
    with pytest.raises(ValueError, match="policy/bias: here, not there"):
        transfer(more, params(0.0), ["*"], [], "there")


@pytest.mark.parametrize(("take", "leave"), [(["modle/*"], []), (["*"], ["policy/bias"])])
def test_a_pattern_that_matches_nothing_is_refused(take: list[str], leave: list[str]) -> None:
    with pytest.raises(ValueError, match=r"matches no parameter; there are model/enc/\*|matches no parameter"):
        transfer(params(0.0), params(1.0), take, leave, "there")


def spec(actions: int) -> EnvSpec:
    return EnvSpec(Space((3,)), Space((), np.int32, 0, actions), 10)


def test_an_agent_for_other_actions_begins_with_all_that_has_nothing_to_do_with_them(tmp_path: Path) -> None:
    stored = learner.init(Dreamer.of(debug(), spec(3)), jax.random.key(0)).params
    agent = model.make(debug(), spec(3))
    save_agent(tmp_path / "agent.npz", debug(), agent, AgentParams(stored.model, stored.policy, jnp.zeros((1, 8))))
    own = learner.init(Dreamer.of(debug(), spec(5)), jax.random.key(1)).params
    with pytest.raises(ValueError) as error:
        load_into(Begin(tmp_path), own)
    misfits = [line.split(":")[0].strip() for line in str(error.value).splitlines()[1:-1]]
    assert misfits and all(name.startswith(("model/dyn/", "policy/")) for name in misfits)
    found = load_into(Begin(tmp_path, leave=tuple(misfits)), own)
    jax.tree.map(lambda new, old: np.testing.assert_allclose(new, old, atol=1e-3), found.model.enc, stored.model.enc)
    jax.tree.map(np.testing.assert_array_equal, found.value, own.value)  # a stored agent has no critic
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, own)
    assert load_into(Begin(), own) is own
