"""World models in JAX, as pure functions: World Models (Ha & Schmidhuber 2018), DreamerV3 (Hafner et al. 2023).

Everything goes round one loop::

    env --act, rollout--> steps --> replay --> world-model loss --> params
     ^                                                                |
     +--- policy <--- evolution.tell <--- returns <--- dream(model, policy)

`types` holds the contracts that the rest is written against. `rollout` acts in an environment, `dream` in a world
model, which is itself an environment; `worldmodels` and `dreamerv3` each make an `Agent`: a `LatentModel` and a policy.
`nets`, `distributions`, `returns` and `optim` are the mathematics, `replay` the data, `evolution` CMA-ES over the
parameters of any policy, `planning` policies that need no training, `envs` the games. The rest touches disk and screen:
`storage` keeps what survives a kill, `acting` acts in host environments, `training` runs for hours, `reporting` is what
a person looks at, `play` the page on which a person meets an agent, `trust` how far its dreams hold, `export` what
makes agents travel, `launch` jobs of experiments.

Names are imported when they are first used: `import dreamjax` alone starts neither JAX nor a game.
"""

from typing import TYPE_CHECKING

from dreamjax._exports import exports

__version__ = "0.1.0"

if TYPE_CHECKING:
    from dreamjax import (
        acting as acting,
        distributions as distributions,
        dream as dream,
        dreamerv3 as dreamerv3,
        envs as envs,
        evolution as evolution,
        export as export,
        launch as launch,
        nets as nets,
        optim as optim,
        planning as planning,
        play as play,
        replay as replay,
        reporting as reporting,
        returns as returns,
        rollout as rollout,
        storage as storage,
        training as training,
        trust as trust,
        types as types,
        worldmodels as worldmodels,
    )
    from dreamjax.acting.evaluation import evaluate as evaluate
    from dreamjax.reporting.films import film as film
    from dreamjax.rollout import act as act, start as start, unroll as unroll
    from dreamjax.storage.agents import load as load, save_agent as save_agent
    from dreamjax.training.dreamer import train as train
    from dreamjax.types import (
        Action as Action,
        Agent as Agent,
        AgentParams as AgentParams,
        AnyPolicy as AnyPolicy,
        Array as Array,
        Environment as Environment,
        EnvSpec as EnvSpec,
        Key as Key,
        LatentModel as LatentModel,
        Metrics as Metrics,
        Outcome as Outcome,
        Params as Params,
        Policy as Policy,
        PyTree as PyTree,
        RecurrentPolicy as RecurrentPolicy,
        Space as Space,
        State as State,
        Step as Step,
        StepPolicy as StepPolicy,
    )

__getattr__, __dir__, __all__ = exports(__name__, __file__)
