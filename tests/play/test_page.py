"""The page in Chromium, without a screen: what a person does, and what comes of it. Run by `make test-page`."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from dreamjax.envs.probes import PLAYER_COLOUR
from dreamjax.storage.agents import read_stored, save_agent
from tests.play.sessions import RESULTS, untrained

pytestmark = pytest.mark.page
LIMIT_S = 60.0  # of every wait, after which something is wrong

# What is told with frames, from the one on the page on, until `holds` of (told, those before) is true of one.
UNTIL = """
const [holds, done] = [eval(arguments[0]), arguments[1]], before = [];
const look = (one) => {
  const is_it = holds(one, before);
  before.push(one);
  if (!is_it) return;
  document.removeEventListener("drawn", listen);
  done(one);
};
const listen = ({detail}) => look(detail);
document.addEventListener("drawn", listen);
look(told);  // while the game is paused, no other comes
"""
# The columns of the pixels of a colour in a picture of the page, of its own pixels.
COLUMNS = """
const [name, colour] = arguments, {image} = parts[name], found = [];
for (let i = 0; i < image.data.length; i += 4)
  if (colour.every((one, c) => image.data[i + c] === one)) found.push((i / 4) % image.width);
return found;
"""


class Page:
    """A tab with the page in it."""

    def __init__(self, driver: webdriver.Chrome, handle: str) -> None:
        self._driver, self._handle = driver, handle

    @property
    def driver(self) -> webdriver.Chrome:
        """The browser, in which this tab is in front."""
        self._driver.switch_to.window(self._handle)
        return self._driver

    def until(self, holds: str) -> dict[str, Any]:
        """Wait until a JavaScript function of (told, those before it) is true of a frame; return what is told."""
        return self.driver.execute_async_script(UNTIL, holds)

    def press(self, *keys: str) -> None:
        ActionChains(self.driver).send_keys(*keys).perform()

    def click(self, css: str) -> None:
        self.driver.find_element(By.CSS_SELECTOR, css).click()

    def text(self, css: str) -> str:
        return self.driver.find_element(By.CSS_SELECTOR, css).text

    def slide(self, name: str, value: float) -> None:
        """Move a slider, as a hand would in steps too small to tell apart."""
        script = """const [id, value] = arguments, input = document.getElementById(id);
        input.value = value; input.dispatchEvent(new Event("input")); input.dispatchEvent(new Event("change"));"""
        self.driver.execute_script(script, name, value)

    def picture(self, name: str) -> str:
        """Return the pixels of a picture on the page, as text to compare."""
        return self.driver.execute_script("return parts[arguments[0]].canvas.toDataURL()", name)

    def shown(self) -> str:
        return self.driver.execute_script("return document.getElementById('view').toDataURL()")


@pytest.fixture(scope="module")
def driver() -> Iterator[webdriver.Chrome]:
    """Start Chromium, once for all tests."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    # Its sandbox does not work for root, nor do large frames in the small shared memory of containers.
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1100,1000"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(str(shutil.which("chromedriver"))))
    driver.set_script_timeout(LIMIT_S)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path], str]]:
    """Serve the page of an agent, once for all tests, and return its address; in the end all servers end."""
    running: dict[Path, tuple[subprocess.Popen, str]] = {}

    def serve(agent: Path) -> str:
        if agent not in running:
            line = [sys.executable, "-m", "dreamjax.play", str(agent), "--port", "0", "--no-browser"]
            process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
            assert process.stdout is not None
            running[agent] = process, process.stdout.readline().split()[2]
        return running[agent][1]

    yield serve
    for process, _ in running.values():
        process.terminate()
    assert [process.wait(60) for process, _ in running.values()]


@pytest.fixture
def tab(driver: webdriver.Chrome) -> Iterator[Callable[[str], Page]]:
    """Open tabs, and close them after the test; the browser has nothing to complain about."""
    first, pages = driver.current_window_handle, []

    def open_tab(address: str) -> Page:
        driver.switch_to.new_window("tab")
        driver.get(address)
        pages.append(Page(driver, driver.current_window_handle))
        WebDriverWait(driver, LIMIT_S).until(
            lambda _: driver.execute_script("return typeof told !== 'undefined' && told !== null")
        )
        return pages[-1]

    yield open_tab
    complaints = [entry for page in pages for entry in page.driver.get_log("browser")]  # type: ignore[attr-defined]
    for page in pages:
        page.driver.close()
    driver.switch_to.window(first)
    assert complaints == []


def catch(served: Callable[[Path], str], tmp_path: Path) -> str:
    """Serve the agent that catches, from a copy, beside which films may be recorded."""
    found = read_stored(RESULTS / "dreamerv3_jax_catch")
    save_agent(tmp_path / "agent.npz", found.config, found.agent, found.params, task=found.task)
    return served(tmp_path)


def test_keys_move_the_player_and_the_agent_takes_over_again(
    served: Callable[[Path], str], tab: Callable[[str], Page]
) -> None:
    page = tab(served(RESULTS / "dreamerv3_jax_catch"))
    assert page.until("told => told.real.steps === 1")["actor"] == "agent"
    chain = ActionChains(page.driver).key_down(Keys.ARROW_RIGHT).perform
    chain()
    told = page.until("told => told.actor === 'person' && told.real.steps === 3")
    assert told["real"]["action"] == [2.0]
    told = page.until("(told, before) => told.real.steps === 3 && before.some(({real}) => real.steps === 0)")
    columns = page.driver.execute_script(COLUMNS, "real", PLAYER_COLOUR)
    assert told["real"]["total"] == 1 or min(columns) == 48  # at the right wall, unless the ball covers it there
    ActionChains(page.driver).key_up(Keys.ARROW_RIGHT).perform()
    assert page.until("told => told.real.steps === 2")["real"]["action"] == [1.0]
    page.press("p")
    page.until("told => told.actor === 'agent'")
    assert page.driver.find_element(By.CSS_SELECTOR, "[data-actor=agent]").get_attribute("aria-pressed") == "true"


def test_buttons_act_as_keys_do(served: Callable[[Path], str], tab: Callable[[str], Page]) -> None:
    page = tab(served(RESULTS / "dreamerv3_jax_catch"))
    button = page.driver.find_element(By.CSS_SELECTOR, "#pad [data-keys=ArrowLeft]")
    ActionChains(page.driver).click_and_hold(button).perform()
    told = page.until("told => told.actor === 'person' && told.real.steps === 2")
    assert told["real"]["action"] == [0.0] and "held" in str(button.get_attribute("class"))
    ActionChains(page.driver).release().perform()
    page.until("(told, before) => before.length > 3 && told.real.steps > 0 && told.real.action[0] === 1")


def test_views_are_toggled_and_the_dream_begins_at_the_real_picture(
    served: Callable[[Path], str], tab: Callable[[str], Page]
) -> None:
    page = tab(served(RESULTS / "doom_take_cover"))
    page.until("told => told.view === 'both' && Object.keys(told.pictures).length === 3")
    page.press("t")
    page.until("told => told.view === 'real' && Object.keys(told.pictures).join() === 'real,seen'")
    page.press(Keys.SPACE)
    frozen = page.until("told => told.paused")
    seen = page.picture("seen")
    page.press("t")
    entered = page.until("told => told.view === 'dream'")
    assert list(entered["pictures"]) == ["dream"] and entered["dream"]["steps"] == 0
    assert page.picture("dream") == seen
    page.press(Keys.SPACE)
    told = page.until("told => told.dream.steps > 5 || told.dream.over")
    assert told["real"]["steps"] == frozen["real"]["steps"]
    assert page.picture("dream") != seen
    page.press("e")
    page.until("(told, before) => before.length && told.dream.steps < before.at(-1).dream.steps")


def test_temperature_changes_the_dream(served: Callable[[Path], str], tab: Callable[[str], Page]) -> None:
    page, pictures = tab(served(RESULTS / "doom_take_cover")), []
    page.press("t", "t", Keys.SPACE)
    page.until("told => told.view === 'dream' && told.paused")
    for temperature in (0.1, 0.1, 3.0):
        page.slide("temperature", temperature)
        page.until(f"told => told.temperature === {temperature}")
        page.driver.execute_script("send({do: 'reset', number: 7})")
        page.until("told => told.number === 7 && told.dream.steps === 0")
        page.press(".")
        page.until("told => told.dream.steps === 1")
        pictures.append(page.picture("dream"))
    assert pictures[0] == pictures[1] != pictures[2]
    assert page.text("#temperature-shown") == "3.00"


def test_two_tabs_are_games_of_their_own(served: Callable[[Path], str], tab: Callable[[str], Page]) -> None:
    address = served(RESULTS / "doom_take_cover")
    one, other = tab(address), tab(address)
    other.press(Keys.SPACE)
    paused = other.until("told => told.paused")
    other.driver.execute_script("send({do: 'reset', number: 99})")
    assert other.until("told => told.number === 99")["paused"]
    told = one.until("(told, before) => before.length > 9")
    assert not told["paused"] and told["number"] < 99 and paused["number"] == 0
    one.until("(told, before) => before.length && told.real.steps > before[0].real.steps + 3")


def test_numbers_step_seed_and_films(served: Callable[[Path], str], tab: Callable[[str], Page], tmp_path: Path) -> None:
    page = tab(catch(served, tmp_path))
    page.click("#pause")
    page.until("told => told.paused")
    seed = page.driver.find_element(By.ID, "seed")
    seed.clear()
    seed.send_keys("12", Keys.ENTER)
    assert page.until("told => told.number === 12 && told.real.steps === 0")["paused"]
    page.press("x")
    page.until("told => told.recording")
    for number in (1, 2):
        page.press(".")
        page.until(f"told => told.real.steps === {number}")
    assert page.text("#real-steps") == "2" and page.text("#real-total") == "0"
    assert 0 <= float(page.text("#real-continues")) <= 1 and float(page.text("#real-surprise")) >= 0
    page.press("x")
    assert page.until("told => told.film")["film"] == "play-001.mp4"
    assert (tmp_path / "films" / "play-001.mp4").stat().st_size > 1000
    size = "const done = arguments[1]; fetch(arguments[0]).then((x) => x.arrayBuffer()).then((x) => done(x.byteLength))"
    for shown, name in (("film", "play-001.mp4"), ("gif", "play-001.gif")):
        link = page.driver.find_element(By.ID, shown).get_attribute("href")
        assert page.driver.execute_async_script(size, link) == (tmp_path / "films" / name).stat().st_size > 1000


def test_vectors_are_drawn_as_traces(served: Callable[[Path], str], tab: Callable[[str], Page], tmp_path: Path) -> None:
    from dreamjax.envs.gymnasium import spec_from_gymnasium
    from dreamjax.envs.suites import task

    with task("gym_CartPole-v1").make_env() as env:
        found = untrained(spec_from_gymnasium(env, 500))
    save_agent(tmp_path / "agent.npz", found.config, found.agent, found.params, task="gym_CartPole-v1")
    page = tab(served(tmp_path))
    told = page.until("told => told.real.steps > 3")
    assert told["pictures"] == {} and {name: len(one) for name, one in told["numbers"].items()} == {
        "real": 4,
        "seen": 4,
        "dream": 4,
    }
    assert page.driver.find_element(By.ID, "traces").is_displayed()
    assert not page.driver.find_element(By.ID, "view").is_displayed()
    drawn = """const canvas = document.getElementById("traces");
    return canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.some((x) => x);"""
    assert page.driver.execute_script(drawn)


def test_it_fits_a_phone(served: Callable[[Path], str], tab: Callable[[str], Page]) -> None:
    page = tab(served(RESULTS / "doom_take_cover"))
    metrics = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    page.until("(told, before) => before.length > 5")
    size = page.driver.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert size[0] <= size[1] == 390
    for css in ("#pad [data-keys=ArrowLeft]", "#pad [data-keys=ArrowRight]", "#view", "#temperature"):
        assert page.driver.find_element(By.CSS_SELECTOR, css).is_displayed()
    page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
