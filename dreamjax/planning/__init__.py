"""Planning in any `LatentModel`: random shooting, CEM, iCEM and MPPI, as policies that nobody has to train."""

from typing import TYPE_CHECKING

from dreamjax._exports import exports

if TYPE_CHECKING:
    from dreamjax.planning import beliefs as beliefs, planner as planner
    from dreamjax.planning.planner import (
        Plan as Plan,
        PlanConfig as PlanConfig,
        Planner as Planner,
        PlannerParams as PlannerParams,
        advance as advance,
        agent as agent,
        agent_params as agent_params,
        cem as cem,
        icem as icem,
        mppi as mppi,
        plan_return as plan_return,
        random_shooting as random_shooting,
        search as search,
        start as start,
    )

__getattr__, __dir__, __all__ = exports(__name__, __file__)
