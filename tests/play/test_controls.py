"""From keys to actions, for every kind of action space."""

import numpy as np
import pytest

from dreamjax.envs.car_racing import car_racing_spec
from dreamjax.play.controls import Axis, Choice, Controls
from dreamjax.types import Space


def test_one_axis_goes_left_and_right() -> None:
    controls = Controls(Space((), np.float32, -1.0, 1.0))
    assert controls.entries == [Axis("action", -1.0, 1.0, 0.0, "ArrowLeft", "ArrowRight")]
    taken = [controls.action(held, {}) for held in ((), ("ArrowLeft",), ("ArrowRight",), ("ArrowLeft", "ArrowRight"))]
    assert [float(a) for a in taken] == [0, -1, 1, 0] and taken[0].shape == () and taken[0].dtype == np.float32
    assert controls.action((), {0: 0.25}) == 0.25
    assert controls.action(("ArrowLeft",), {0: 0.25}) == -1.0


def test_a_car_has_steering_gas_and_brake() -> None:
    controls = Controls(car_racing_spec().action)
    assert [(entry.name, entry.neutral) for entry in controls.entries] == [
        ("action[0]", 0),
        ("action[1]", 0),
        ("action[2]", 0),
    ]
    np.testing.assert_array_equal(controls.action(("ArrowUp", "ArrowLeft"), {}), [-1, 1, 0])
    np.testing.assert_array_equal(controls.action(("ArrowDown",), {}), [0, 0, 1])


def test_axes_that_go_one_way_rest_at_their_end() -> None:
    controls = Controls(Space((2,), np.float32, [-2.0, 1.0], [0.0, 3.0]))
    np.testing.assert_array_equal(controls.action((), {}), [0, 1])
    np.testing.assert_array_equal(controls.action(("ArrowUp", "ArrowDown"), {}), [-2, 3])


def test_many_axes_have_keys_as_long_as_there_are_some_and_sliders_always() -> None:
    controls = Controls({"arm": Space((6,), np.float32, -1.0, 1.0), "leg": Space((2, 1))})
    assert len(controls.keys) == 12 and len(controls.entries) == 8
    assert controls.entries[-1] == Axis("leg[1]", -1.0, 1.0, 0.0, "", "")
    action = controls.action(("KeyD",), {1: -0.5, 7: 0.5})
    np.testing.assert_array_equal(action["arm"], [0, -0.5, 1, 0, 0, 0])
    np.testing.assert_array_equal(action["leg"], [[0], [0.5]])


def test_choices_without_names_have_arrows_if_they_are_few_and_digits_if_not() -> None:
    three = Controls(Space((), np.int32, 0, 3))
    assert [int(three.action(held, {})) for held in ((), ("ArrowLeft",), ("ArrowRight",))] == [1, 0, 2]
    assert three.action((), {}).dtype == np.int32
    many = Controls(Space((), np.int32, 5, 17))
    assert many.entries[0].keys[9:] == (("Digit0",), (), ())
    assert [int(many.action(held, {})) for held in ((), ("Digit3",), ("Digit3", "Digit2"))] == [5, 7, 6]
    assert many.action((), {0: 16}) == 16


def test_named_choices_are_what_their_names_say() -> None:
    labels = ("NOOP", "FIRE", "UP", "RIGHT", "UPRIGHT", "UPRIGHTFIRE", "jump")
    controls = Controls(Space((), np.int32, 0, 7), labels)
    (entry,) = controls.entries
    assert isinstance(entry, Choice) and entry.labels == labels and entry.neutral == 0
    assert entry.keys[-2:] == (("ArrowUp", "ArrowRight", "KeyF"), ("Digit1",))
    held = [(), ("KeyF",), ("ArrowUp",), ("ArrowUp", "ArrowRight"), ("ArrowRight", "KeyF", "ArrowUp"), ("Digit1",)]
    assert [labels[int(controls.action(keys, {}))] for keys in held] == [
        *("NOOP", "FIRE", "UP", "UPRIGHT", "UPRIGHTFIRE", "jump")
    ]
    moves = Controls(Space((), np.int32, 0, 3), ("noop", "move_left", "move_up")).entries[0]
    assert isinstance(moves, Choice) and moves.keys == ((), ("ArrowLeft",), ("ArrowUp",))


def test_of_several_choices_the_first_has_keys() -> None:
    controls = Controls((Space((), np.int32, 0, 2), Space((2,), np.int32, 0, 4)))
    assert controls.keys == {"ArrowLeft", "ArrowRight"}
    first, others = controls.action(("ArrowRight",), {2: 3})
    assert first == 1 and others.tolist() == [0, 3]
    for index, value in ((3, 0), (-1, 0), (1, 4), (1, -1)):
        with pytest.raises(ValueError, match=r"got number|lies in \[0, 3\]"):
            controls.check(index, value)


def test_what_nobody_can_pick_from_is_refused() -> None:
    with pytest.raises(ValueError, match="action has 1000 choices, of 256 at most"):
        Controls(Space((), np.int32, 0, 1000))
