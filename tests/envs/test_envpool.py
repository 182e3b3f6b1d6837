"""EnvPool as the engine of CarRacing: the same game, near enough for what was learned in one to serve in the other."""

import numpy as np
import pytest

pytest.importorskip("envpool", reason="EnvPool is an extra of its own: make test-adapters")

from dreamjax.envs.car_racing import CarRacing

STRAIGHT_ON = np.array([0, 1, 0], np.float32)  # off the track and off the field


def drive(env: CarRacing, seed: int, steps: int = 60) -> tuple[list[np.ndarray], list[float]]:
    frames, rewards = [env.reset(seed=seed)[0]], []
    for step in range(steps):
        frame, reward, *_ = env.step(np.array([0.2 * np.sin(step / 7), 0.1, 0], np.float32))
        frames.append(frame)
        rewards.append(reward)
    return frames, rewards


def test_an_episode_follows_from_its_seed() -> None:
    env = CarRacing("envpool")
    frames, rewards = drive(env, 3)
    assert frames[0].shape == (64, 64, 3) and frames[0].dtype == np.uint8
    drive(env, 4, steps=5)
    again, paid = drive(CarRacing("envpool"), 3)
    np.testing.assert_array_equal(frames, again)
    assert rewards == paid
    assert not np.array_equal(frames, drive(env, 4)[0])


def test_frames_look_like_gymnasiums() -> None:
    """Tracks are others, so that colours are compared, of frames at the end of which the car stands on the road."""
    ours, theirs = (np.stack(drive(CarRacing(engine), 0)[0][50:]) for engine in ("dreamjax", "envpool"))
    for frames in (ours, theirs):
        grey = np.ptp(frames.astype(int), axis=-1) < 20
        green = (frames[..., 1].astype(int) - frames[..., 0]) > 50
        assert 0.1 < grey.mean() < 0.6 and 0.3 < green.mean() < 0.9
        red = (frames[:, 44:60, 28:36, 0].astype(int) - frames[:, 44:60, 28:36, 1]) > 40
        assert red.any((1, 2)).all()  # the car
    assert abs(ours[..., 1].mean() - theirs[..., 1].mean()) < 20


def test_steps_cost_and_new_tiles_pay() -> None:
    _, rewards = drive(CarRacing("envpool"), 5)
    assert min(rewards) == pytest.approx(-0.1, abs=1e-6)
    assert 2 < max(rewards) < 10


def test_leaving_the_field_ends_it_and_costs_100() -> None:
    env = CarRacing("envpool")
    env.reset(seed=0)
    for _ in range(1000):
        _, reward, terminated, truncated, _ = env.step(STRAIGHT_ON)
        if terminated or truncated:
            break
    assert terminated and reward < -90
    with pytest.raises(RuntimeError, match="call reset"):
        env.step(STRAIGHT_ON)


def test_max_steps_and_patience_truncate() -> None:
    for settings, steps in (({"max_steps": 7}, 7), ({"patience": 30}, None)):
        env = CarRacing("envpool", **settings)
        env.reset(seed=0)
        count, truncated = 0, False
        while not truncated:
            _, _, terminated, truncated, _ = env.step(np.zeros(3, np.float32))
            assert not terminated
            count += 1
        assert count == steps or (steps is None and count < 200)


def test_what_it_cannot_do_is_refused() -> None:
    for settings in ({"full_length": True}, {"render_mode": "rgb_array"}, {"max_steps": 1001}):
        with pytest.raises(ValueError, match="envpool"):
            CarRacing("envpool", **settings)
