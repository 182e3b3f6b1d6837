"""Training DreamerV3 while it acts in host environments, or from a replay alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from dreamjax.acting.vector import VectorEnvironment
from dreamjax.dreamerv3 import experience
from dreamjax.dreamerv3.experience import Experience
from dreamjax.dreamerv3.learner import TrainState
from dreamjax.dreamerv3.model import Dreamer
from dreamjax.storage.checkpoints import Checkpoints
from dreamjax.storage.folder import RunFolder, Stage
from dreamjax.storage.identity import pin, pinned
from dreamjax.storage.metrics import MetricsLog
from dreamjax.storage.progress import Progress as Bar, progress
from dreamjax.storage.recordings import fill, open_recording
from dreamjax.storage.replays import ReplayError, saved_parts
from dreamjax.storage.transfer import Begin
from dreamjax.training import plan
from dreamjax.training.loop import refuse_beyond
from dreamjax.training.online_config import AT_ONCE, OnlineConfig, updates_at_once
from dreamjax.training.processes import asked_to_stop, is_first, is_time_to_ask, label, meet, run_folder, share
from dreamjax.training.signals import StopRequest, stop_request
from dreamjax.training.trace import Trace, tracing
from dreamjax.training.trainer import Training
from dreamjax.types import Metrics


class Progress(NamedTuple):
    """What one step of all environments, or one call to learn offline, came to."""

    steps: int  # collected so far, of all environments together
    updates: int  # so far
    episodes: dict[int, Metrics]  # of the environments whose episode ended: return, length, info/<name>
    metrics: dict[int, dict[str, float]]  # of updates that have ended and are due to be logged, by their number
    failures: int = 0  # environments that raised, died or hung since training began or was resumed


def train_online(
    run: RunFolder,
    dreamer: Dreamer,
    environment: VectorEnvironment,
    cfg: OnlineConfig,
    seed: int,
    begin: Begin | None = None,
    at_once: int = AT_ONCE,
) -> TrainState:
    """Bring the agent of a run folder to `cfg.steps` collected steps, from its newest checkpoint if there is one.

    A resumed run has the agent, the replay and the counters it had; its environments begin new episodes. A new run
    begins with what `begin` names of another one. `metrics.jsonl` has a line for every episode, `log_every` updates,
    and step at which environments failed, whose episodes end there as truncated.

    Where a step of all environments asks for several updates, up to `at_once` of them are one call: see `Training`.
    First of all the plan of the run is printed, with the time that an update takes. Every update is looked at before
    anything is saved. After a signal the step under way is finished and saved. Several processes call it together, each
    with its own environments, and a run folder that is its own: see `training.processes`.

    Raises: ValueError if the run was begun in another environment, with more or fewer of them, or is beyond `cfg.steps`
        already, the machine is too small for it, its devices do not divide the batch, the processes what they share, or
        what it begins with does not fit; ReplayError if the replay is damaged; FloatingPointError if an update was not
        finite; `Stopped` after a signal; as `VectorEnvironment.step` does.
    """
    pin(run.path, "environment", environment.name)
    plan.announce(dreamer, cfg, len(environment), run.path)
    streams = len(environment) * jax.process_count()
    training = Training(run, dreamer, len(environment), cfg, seed, updates_at_once(cfg, streams, at_once))
    is_new = _is_new(training, run, begin)
    bar = progress(cfg.steps, label("train"), initial=training.steps, unit="step", waits="compiling")
    failures = 0
    with _training(run, bar) as (stop, log, trace, stage):
        if is_new:
            _begin(training, run, bar, begin)
        training.rewind(log)
        for now in act_and_learn(training, environment):
            trace.at(now.updates, training.state, training.at_once)
            for i, episode in now.episodes.items():
                log.write("episode", now.steps - streams + environment.first + i, episode)
                bar.set_postfix({"return": f"{episode['return'] + 0.0:.4g}", "updates": now.updates})
            if now.failures > failures:
                log.write("failures", now.steps, {"environments": now.failures - failures})
                failures = now.failures
            bar.update(now.steps - bar.n)
            # Once, so that nothing is left unsaved by a signal that comes in between.
            stopping = is_time_to_ask(now.steps // streams) and asked_to_stop(stop)
            saving = now.updates - training.saved >= cfg.checkpoint_every or stopping
            for number, metrics in (now.metrics | (training.wait() if saving else {})).items():
                log.write("learn", number, metrics)
            if saving:
                training.save()
                stage.tick()
            if stopping:
                stop.leave(
                    f"saved at step {now.steps} of {cfg.steps}; started again, it goes on from there: {run.path}"
                )
        training.save()
        meet("the end, after update", training.updates)  # when the agent is written
    return training.state


def _is_new(training: Training, run: RunFolder, begin: Begin | None) -> bool:
    """Go on from the newest checkpoint, or refuse what a new run is to begin with; return whether it is new."""
    if training.restore():
        # The last step of all environments may go beyond what was asked for.
        refuse_beyond(run, training.steps, -(-training.cfg.steps // training.streams) * training.streams, "steps")
        return False
    if begin is not None:
        training.begin_with(begin)  # the agent begins anew once its updates are timed
    return True


def _begin(training: Training, run: RunFolder, bar: Bar, begin: Begin | None) -> None:
    """Say how long the updates of a new run will take, and begin with what is named of another one."""
    line = plan.learning(training.dreamer, training.cfg, training.streams, run.path, training.probe())
    if is_first():
        bar.say(line)
    if begin is not None:
        training.begin_with(begin)


def act_and_learn(training: Training, environment: VectorEnvironment) -> Iterator[Progress]:
    """Act in all environments and learn at the train ratio, to the configured number of steps; yield every step.

    While the device updates the agent, the environments step with what the agent was before.
    """
    cfg, envs, dreamer = training.cfg, len(environment), training.dreamer
    memory = experience.start(dreamer, envs)
    step = environment.reset(seed=(training.seed, training.steps))  # a resumed run sees other episodes than before
    total, length = np.zeros(envs), np.zeros(envs, int)
    while training.steps < cfg.steps:
        memory, latent = training.act(memory, step)
        metrics = training.learn(training.due)
        action, latent = jax.device_get((memory.action, latent))
        total, length = np.where(step.is_first, 0.0, total) + step.reward, np.where(step.is_first, 0, length + 1)
        episodes = {
            int(i): {"return": total[i], "length": length[i]}
            | {f"info/{name}": value for name, value in environment.info.get(int(i), {}).items()}
            for i in np.flatnonzero(step.is_last)
        }
        training.replay.add(Experience(step, action, latent))
        training.note(step)
        step = environment.step(action)
        yield Progress(training.steps, training.updates, episodes, metrics, environment.failures)
    metrics = training.learn(training.due) | training.wait()
    yield Progress(training.steps, training.updates, {}, metrics, environment.failures)


def train_offline(
    run: RunFolder,
    dreamer: Dreamer,
    cfg: OnlineConfig,
    seed: int,
    updates: int,
    recording: Path | None = None,
    at_once: int = AT_ONCE,
    begin: Begin | None = None,
) -> TrainState:
    """Bring the agent of a run folder to `updates` updates without any environment; a new one begins with `begin`.

    Up to `at_once` updates are one call: see `Training`. It goes on with the replay that the folder holds. A folder
    with none begins with what a recording holds, which may be the folder of another run. What was done is noted in
    `offline.json`.

    Raises: ReplayError if there is neither, or one is damaged; ValueError if the recording is of other spaces or in the
        run's own folder, if there is a recording where the run has begun without one, if the agent is beyond `updates`,
        or what it begins with does not fit.
    """
    training = _offline(run, dreamer, cfg, seed, recording, at_once, begin)
    refuse_beyond(run, training.updates, updates, "updates")
    bar = progress(updates, label("train"), initial=training.updates, unit="update", waits="compiling")
    with _training(run, bar) as (stop, log, trace, stage):
        training.rewind(log)
        calls = 0
        while training.updates < updates:
            trace.at(training.updates, training.state, at_once)
            metrics = training.learn(min(updates, training.updates + at_once, training.saved + cfg.checkpoint_every))
            done = training.updates
            bar.update(done - bar.n)
            calls += 1
            stopping = is_time_to_ask(calls) and asked_to_stop(stop)
            saving = done - training.saved >= cfg.checkpoint_every or done >= updates or stopping
            for number, values in (metrics | (training.wait() if saving else {})).items():
                log.write("learn", number, values)
            if saving:
                training.save()
                stage.tick()
            if stopping and done < updates:
                stop.leave(f"saved at update {done} of {updates}; started again, it goes on from there: {run.path}")
        recorded_in = {name: of for name, of in pinned(run.path).items() if name == "recording"}
        run.write_json("offline.json", {"offline": updates} | recorded_in)
        meet("the end, after update", training.updates)
    return training.state


def _offline(
    run: RunFolder,
    dreamer: Dreamer,
    cfg: OnlineConfig,
    seed: int,
    recording: Path | None,
    at_once: int,
    begin: Begin | None,
) -> Training:
    """Go on with the agent and the replay of a folder, or begin with a recording. Raises: as `train_offline`."""
    if recording is not None and recording.resolve() == run.path.resolve():
        raise ValueError(f"a run writes its own replay, so {recording} would be lost: name another folder for the run")
    saved = Checkpoints(run_folder(run.path) / "checkpoints").steps()
    if saved:
        if recording is not None and "recording" not in pinned(run.path):
            raise ValueError(f"{run.path} has a replay of its own: leave the recording out, or use another folder")
        parts = saved_parts(run_folder(run.path), saved[-1])
        streams = share(sum(part.shape(saved[-1])["streams"] for part in parts), "the streams of the replay")
        training = Training(run, dreamer, streams, cfg, seed, at_once)
        training.restore()
    elif recording is not None:
        recorded = open_recording(recording)
        streams = share(recorded.streams, "the streams of the recording")
        training = Training(run, dreamer, streams, cfg, seed, at_once)
        first = streams * jax.process_index()
        fill(training.replay, recorded, training.note, range(first, first + streams))
        if begin is not None:
            training.begin_with(begin)
        training.save()
        pin(run.path, "recording", str(recording))
    else:
        raise ReplayError(f"{run.path} holds no agent with a replay to learn from: name a recording")
    return training


@contextmanager
def _training(run: RunFolder, bar: Bar) -> Iterator[tuple[StopRequest, MetricsLog, Trace, Stage]]:
    """Note signals, write metrics, profile updates, record the time and show a bar, as long as the block runs."""
    with (
        stop_request() as stop,
        MetricsLog(run.path) as log,
        tracing(run, "train") as trace,
        run.stage("train") as stage,
        bar,
    ):
        yield stop, log, trace, stage
