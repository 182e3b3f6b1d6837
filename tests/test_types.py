"""Spaces and what the contracts say of themselves."""

import pydoc

import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax import types
from dreamjax.types import Environment, LatentModel, Policy, RecurrentPolicy, Space, StepPolicy


def test_a_space_has_one_bound_or_one_for_each_entry() -> None:
    space = Space((2, 2), np.float32, np.array([[-1, 0], [0, 0]], np.float32), 1.0)
    assert space.low == ((-1, 0), (0, 0)) and space.high == 1
    np.testing.assert_array_equal(space.low_array, [[-1, 0], [0, 0]])
    np.testing.assert_array_equal(space.high_array, np.ones((2, 2)))
    assert space.low_array.dtype == space.high_array.dtype == np.float32


def test_equal_spaces_are_equal_however_they_are_written() -> None:
    """They are keys of caches, so they hash alike."""
    written = [
        Space((2,), np.float32, -1.0, 1.0),
        Space((2,), np.dtype("float32"), [-1, -1], jnp.ones(2)),
        Space((2,), "float32", np.full(2, -1.0), (1, 1)),
    ]
    assert len(set(written)) == 1
    assert len({Space((2,), np.float32, low, 1.0) for low in ((-1, 0), [-1, 0], np.array([-1.0, 0.0]), -1.0)}) == 2


def test_bounds_of_a_discrete_space_do_not_wrap() -> None:
    image = Space((4, 4, 3), np.uint8, 0, 256)
    assert image.high_array.shape == (4, 4, 3) and (image.high_array == 256).all() and image.is_discrete
    assert Space((), np.int32).high_array == np.inf
    assert not Space((), jnp.bfloat16).is_discrete and Space((), bool, 0, 2).is_discrete


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), ([0.0, 2.0], 1.0), ([0.0, np.nan], 1.0)])
def test_empty_ranges_are_refused(low: object, high: float) -> None:
    with pytest.raises(ValueError, match="low < high"):
        Space((2,), np.float32, low, high)


def test_bounds_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"high must be a number or have the shape \(2,\) of its Space, got \(3,\)"):
        Space((2,), np.float32, 0.0, (1, 2, 3))


@pytest.mark.parametrize("contract", [Environment, LatentModel, Policy, RecurrentPolicy, StepPolicy])
def test_help_explains_the_call_of_every_field(contract: type) -> None:
    shown = pydoc.plain(pydoc.render_doc(contract))
    for field in contract._fields:  # type: ignore[attr-defined]
        explained = getattr(contract, field).__doc__
        assert "Alias for field" not in explained and explained.splitlines()[0] in shown
    kinds = {kind for kind in contract.__annotations__.values() if kind is not types.EnvSpec}
    assert all(getattr(kind, "_is_protocol", False) and kind.__call__.__doc__ for kind in kinds)
