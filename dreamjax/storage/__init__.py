"""What survives a kill: run folders, checkpoints, agents, recordings, replays, metrics."""

from typing import TYPE_CHECKING

from dreamjax._exports import exports

if TYPE_CHECKING:
    from dreamjax.storage import (
        agents as agents,
        atomic as atomic,
        checkpoints as checkpoints,
        configs as configs,
        episodes as episodes,
        folder as folder,
        identity as identity,
        leaves as leaves,
        metrics as metrics,
        progress as progress,
        provenance as provenance,
        recordings as recordings,
        replays as replays,
        specs as specs,
        trackers as trackers,
        transfer as transfer,
        weights as weights,
    )
    from dreamjax.storage.agents import copy_agent as copy_agent, load as load, save_agent as save_agent
    from dreamjax.storage.checkpoints import Checkpoints as Checkpoints, newest as newest
    from dreamjax.storage.folder import Change as Change, RunFolder as RunFolder
    from dreamjax.storage.metrics import (
        MetricsLog as MetricsLog,
        read_episodes as read_episodes,
        read_metrics as read_metrics,
    )
    from dreamjax.storage.recordings import open_recording as open_recording, write_recording as write_recording
    from dreamjax.storage.replays import ReplayFolder as ReplayFolder
    from dreamjax.storage.trackers import track as track
    from dreamjax.storage.transfer import Begin as Begin
    from dreamjax.storage.weights import load_weights as load_weights, save_weights as save_weights

__getattr__, __dir__, __all__ = exports(__name__, __file__)
