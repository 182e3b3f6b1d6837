"""Experiments as jobs: here, on this machine or by Slurm, one or a sweep; queued again where their time is over."""

from typing import TYPE_CHECKING

from dreamjax._exports import exports

if TYPE_CHECKING:
    from dreamjax.launch import jobs as jobs, sweep as sweep
    from dreamjax.launch.jobs import Experiment as Experiment, Resources as Resources, submit as submit
    from dreamjax.launch.sweep import Variant as Variant, variants as variants

__getattr__, __dir__, __all__ = exports(__name__, __file__)
