"""One person's game, tick by tick: a real environment, a dream of it, and who acts in both. There is no web in it."""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax.play import settings, shown
from dreamjax.play.controls import Controls
from dreamjax.play.environments import Failed, Running
from dreamjax.play.programs import Belief, Programs
from dreamjax.play.recording import Films
from dreamjax.play.settings import ORDERS, Settings, View
from dreamjax.play.world import World
from dreamjax.rollout import AgentState
from dreamjax.types import Action, Step

PAUSE_S = 1.0  # how long an end is looked at before the next episode begins


class Frame(NamedTuple):
    """What there is to show after a tick."""

    told: dict[str, Any]  # numbers and texts, for JSON
    pictures: dict[str, np.ndarray]  # "real", "seen" (what the model makes of it), "dream": uint8 [H, W, 3]


class Session:
    """A game of a person or an agent, or of both in turns; it begins at the first tick.

    At every tick of "both" the real environment and the dream make a step each; with the other views one of them stands
    still. A person acts in both at once; an agent acts in each by what it knows of it. When the view changes to the
    dream, or "enter" is ordered, the dream goes on from the posterior of the real observation on the screen. After an
    end the next episode begins by itself: that of the dream in the real environment if it goes on beside it, and
    otherwise at one of the agent's starts.

    Args:
      programs: of the agent.
      controls: of its action space.
      environment: opened for this session, which closes it; None dreams only.
      rate: ticks per second at speed 1.
      number: of the first episode, which is also the seed of what the agent and the dream draw.
      films: folder for films.

    Raises: ValueError if there is neither an environment nor a start for the dream.
    """

    def __init__(
        self,
        programs: Programs,
        controls: Controls,
        environment: Running | None,
        rate: float,
        number: int = 0,
        films: Path = Path("films"),
    ) -> None:
        if environment is None and not programs.has_starts:
            raise ValueError("the agent brings no starts for its dreams along: name the environment they are to enter")
        self.views: tuple[View, ...] = ("both", "real", "dream") if environment else ("dream",)
        self.settings = Settings(self.views[0])
        self.heard: Callable[[], None] = lambda: None  # called when something was heard
        self._programs, self._controls, self._environment = programs, controls, environment
        self._rate, self._films, self._number = rate, Films(films, rate), number
        self._orders: deque[tuple[str, int | None]] = deque()
        self._frames = self._draws = 0
        self._at = 0.0  # `settings.at` of the newest step
        self._note = self._failure = ""
        self._real: World | None = None
        self._dream: World | None = None
        self._observation: Any = None

    @property
    def seconds(self) -> float:
        """Time from tick to tick, at the present speed."""
        return 1.0 / (self._rate * self.settings.speed)

    @property
    def has_orders(self) -> bool:
        """Whether there is something to do that need not wait for the next step."""
        return bool(self._orders)

    def hear(self, message: Mapping[str, Any]) -> None:
        """Take in what a person wants; may be called from another thread while a tick is under way.

        `{"set": {...}, "at": time}` changes fields of `Settings`; `{"do": "reset", "number": 3}`, or "step", "enter"
        and "record", is an order for the next tick.

        Raises: ValueError for what is neither, after which nothing has changed.
        """
        if message.keys() <= {"set", "at"} and isinstance(message.get("set"), dict):
            at = settings.number("at", message.get("at", self.settings.at))
            old, wanted = self.settings, settings.checked(message["set"], self._controls, self.views)
            self.settings = replace(old, **wanted, at=at)
            now = self.settings.view
            if now != old.view and (now == "dream" or old.view == "real"):  # the dream comes into view
                self._orders.append(("enter", None))
            elif wanted.keys() - {"held", "entries"}:
                self._orders.append(("look", None))
        elif message.keys() <= {"do", "number"} and message.get("do") in ORDERS:
            number = message.get("number")
            self._orders.append((message["do"], None if number is None else settings.episode_number(number)))
        else:
            raise ValueError(f"expected a dictionary with 'set' or 'do', got {dict(message)!r}")
        self.heard()

    def tick(self, steps: bool = True) -> Frame:
        """Carry out what was ordered, then make a step, unless paused or told not to; return what there is to show."""
        now, self._note, self._films.note = self.settings, "", ""
        steps &= not now.paused
        if not self._frames:
            self._begin()
            steps = False
        while self._orders:
            steps |= self._obey(*self._orders.popleft(), now)
        if steps:
            self._at = now.at
            self._step(now, self._controls.action(now.held, now.entries) if now.actor == "person" else None)
        self._frames += 1
        pictures = self._pictures(now)
        if steps:
            self._films.add(pictures)
        return Frame(self._tell(now), pictures)

    def close(self) -> None:
        """End the environment, and a film if there is one."""
        self._films.end()
        if self._environment:
            self._environment.close()

    def _obey(self, order: str, number: int | None, now: Settings) -> bool:
        """Carry out an order; return whether a step is to follow."""
        match order:
            case "reset":
                self._number, self._dream = self._number + 1 if number is None else number, None
                self._begin()
            case "enter":
                self._enter()
            case "record":
                self._films.toggle(self._pictures(now))
        return order == "step"

    def _begin(self) -> None:
        """Begin the episode of a number, and where there is none, or no dream yet, a dream."""
        self._key, self._draws, self._failure = jax.random.key(self._number), 0, ""
        if self._environment:
            try:
                step = self._environment.reset(self._number)
            except Failed as error:
                self._fail(error)
                return
            self._real = World(*self._see(self._programs.start(), step))
            self._arrive(self._real, step)
            if self._dream:
                return
        self._enter()

    def _see(self, before: AgentState, step: Step) -> tuple[AgentState, Belief]:
        state, belief = self._programs.see(self._programs.params, self._key, self._draw(), before, step)
        return state, jax.device_get(belief)

    def _arrive(self, world: World, step: Step) -> None:
        """Take in what has arrived in the real environment."""
        world.reward, world.total = float(step.reward), world.total + float(step.reward)
        world.over = ("the episode is over" if step.is_terminal else "the time is over") if step.is_last else None
        self._observation = step.observation

    def _enter(self) -> None:
        """Let the dream go on from the real observation on the screen, or begin at a start where there is none."""
        if self._real is None:
            self._start_dream()
        else:
            self._dream = World(self._real.state, self._real.belief)

    def _start_dream(self) -> None:
        if not self._programs.has_starts:
            self._note = "the agent brings no starts for its dreams along"
            return
        state, belief = self._programs.begin(self._programs.params, self._key, self._draw())
        self._dream = World(state, jax.device_get(belief))

    def _step(self, now: Settings, by_person: Action | None) -> None:
        """Step what is in view; the dream is computed while a host environment makes its step."""
        imagined = self._imagine(now, by_person) if now.view != "real" else None
        if now.view != "dream":
            self._step_real(now, by_person)
        if imagined and self._dream:
            world = self._dream
            world.state, world.belief = imagined[0], jax.device_get(imagined[1])
            world.steps, world.reward = world.steps + 1, float(world.belief.reward)
            world.total += world.reward
            if world.belief.continues < 0.5:
                world.over = "the model takes it for over"
            elif world.steps >= self._programs.spec.max_steps:
                world.over = "the time is over"

    def _imagine(self, now: Settings, by_person: Action | None) -> tuple[AgentState, Belief] | None:
        """Begin to compute the next state of the dream, unless its end is being looked at."""
        world = self._dream
        if world is None:
            return None
        if world.over:
            is_beside = now.view == "both" and self._real is not None
            if not self._has_waited(world, now) or (is_beside and self._real and self._real.over):
                return None
            if not is_beside and self._programs.has_starts:
                self._start_dream()
                return None
            self._enter()  # and on from there at once, as the game goes on
            if (world := self._dream) is None:
                return None
        world.taken = world.state.action if by_person is None else by_person
        before, temperature = world.state._replace(action=world.taken), jnp.float32(now.temperature)
        return self._programs.imagine(self._programs.params, self._key, self._draw(), before, temperature)

    def _step_real(self, now: Settings, by_person: Action | None) -> None:
        world = self._real
        if world is None or self._environment is None:  # it failed, and waits for a reset
            return
        if world.over:
            if self._has_waited(world, now):
                self._number += 1
                self._begin()
            return
        world.taken = jax.device_get(world.state.action) if by_person is None else by_person
        try:
            step = self._environment.step(world.taken)
        except Failed as error:
            self._fail(error)
            return
        world.steps += 1
        world.state, world.belief = self._see(world.state._replace(action=world.taken), step)
        self._arrive(world, step)

    def _has_waited(self, world: World, now: Settings) -> bool:
        world.waited += 1
        return world.waited > PAUSE_S * self._rate * now.speed

    def _fail(self, error: Failed) -> None:
        """Stop the real environment, and say what happened; a reset makes it anew."""
        self._failure, self._real = f"{error}. Reset to begin anew.", None

    def _draw(self) -> int:
        """Return a number that no other call of this episode has, to fold into the key."""
        self._draws += 1
        return self._draws

    def _seen(self, now: Settings) -> dict[str, Any]:
        """Observations in view: what is real, what the model makes of it, and what it dreams."""
        seen: dict[str, Any] = {}
        if self._real and now.view != "dream":
            seen = {"real": self._observation, "seen": self._real.belief.decoded}
        if self._dream and now.view != "real":
            seen["dream"] = self._dream.belief.decoded
        return seen

    def _pictures(self, now: Settings) -> dict[str, np.ndarray]:
        drawn = {name: shown.picture(self._programs.spec.observation, one) for name, one in self._seen(now).items()}
        return {name: one for name, one in drawn.items() if one is not None}

    def _tell(self, now: Settings) -> dict[str, Any]:
        spec = self._programs.spec.observation
        return {
            "at": self._at,
            "frame": self._frames,
            "number": self._number,
            "note": self._note or self._films.note or self._failure,
            "recording": self._films.is_on,
            "film": self._films.newest,
            "numbers": {name: shown.numbers(spec, one) for name, one in self._seen(now).items()},
            **{name: getattr(now, name) for name in ("view", "actor", "temperature", "speed", "paused")},
            **{name: world and world.told() for name, world in (("real", self._real), ("dream", self._dream))},
        }
