"""Combinations of the traced settings."""

import numpy as np
import pytest

from dreamjax.dreamerv3 import Sweep, debug
from dreamjax.dreamerv3.sweep import stacked


def test_all_combinations_have_their_values_and_names() -> None:
    found = Sweep(learning_rate=(1e-4, 1e-3), discount_horizon=(5.0, 100.0)).combinations(debug())
    assert list(found) == [
        f"learning_rate {rate}, discount_horizon {horizon}" for rate in ("0.0001", "0.001") for horizon in (5, 100)
    ]
    hyper = stacked(list(found.values()))
    np.testing.assert_allclose(hyper.learning_rate, [1e-4, 1e-4, 1e-3, 1e-3])
    np.testing.assert_allclose(hyper.discount, [0.8, 0.99, 0.8, 0.99])
    np.testing.assert_allclose(hyper.entropy, debug().behaviour.entropy)


def test_without_values_there_is_the_configuration_itself() -> None:
    assert Sweep().combinations(debug()) == {"": debug()}


def test_a_value_is_swept_once() -> None:
    with pytest.raises(ValueError, match="swept once"):
        Sweep(entropy=(0.1, 0.1)).combinations(debug())
    with pytest.raises(ValueError, match="discount_horizon > 1"):
        Sweep(discount_horizon=(0.5,)).combinations(debug())
