"""Environments: games written in JAX, adapters of other suites, and Gymnasium both ways."""

from typing import TYPE_CHECKING

from dreamjax._exports import exports

if TYPE_CHECKING:
    from dreamjax.envs import (
        adaptation as adaptation,
        atari as atari,
        brax as brax,
        bsuite as bsuite,
        car_racing as car_racing,
        contract as contract,
        craftax as craftax,
        crafter as crafter,
        dmc as dmc,
        gymnasium as gymnasium,
        gymnax as gymnax,
        host as host,
        jitted as jitted,
        lab as lab,
        memory_maze as memory_maze,
        minecraft as minecraft,
        naming as naming,
        normalized as normalized,
        offers as offers,
        pixels as pixels,
        popgym as popgym,
        probes as probes,
        procgen as procgen,
        sb3 as sb3,
        suites as suites,
        swingup as swingup,
        vizdoom as vizdoom,
    )
    from dreamjax.envs.adaptation import adapted as adapted
    from dreamjax.envs.contract import check_environment as check_environment
    from dreamjax.envs.gymnasium import (
        spec_from_gymnasium as spec_from_gymnasium,
        spec_from_spaces as spec_from_spaces,
        to_gymnasium as to_gymnasium,
        to_gymnasium_vector as to_gymnasium_vector,
    )

__getattr__, __dir__, __all__ = exports(__name__, __file__)
