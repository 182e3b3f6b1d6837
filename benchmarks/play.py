"""How quickly the page answers: pictures per second, and the time from a key to the picture that it changed.

    python benchmarks/play.py            two minutes
    python benchmarks/play.py --smoke    seconds, to see that it runs; writes nothing

The committed agent's Doom at its own rate, 35 tics a second, with its dream and what the model sees beside it, in
Chromium without a screen, on the same machine: engine, model and browser share its cores. A person plays: keys are
pressed and let go at random moments, as the browser's own input. A picture counts when it is on the canvas, not when a
screen shows it.
"""

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from dreamjax._extras import extra
from dreamjax.reporting.results import result_row, write_result

with extra("test", "this benchmark"):
    from selenium import webdriver

REPO = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results" / "play.json"
KEYS = ("ArrowLeft", "ArrowRight")
LISTEN = """
window.measured = {frames: [], latencies: []};
let latest = 0;
document.addEventListener("drawn", ({detail}) => {
  const now = performance.now();
  measured.frames.push(now);
  if (detail.at > latest) measured.latencies.push(now - (latest = detail.at));
});
"""


@contextmanager
def served(agent: Path) -> Iterator[str]:
    """Serve the page of an agent; yield its address."""
    command = [sys.executable, "-m", "dreamjax.play", str(agent), "--port", "0", "--no-browser"]
    with subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise RuntimeError("the page is not served: see above")
            yield line.split()[2]
        finally:
            process.terminate()


@contextmanager
def chromium() -> Iterator[webdriver.Chrome]:
    """Start Chromium without a screen. Raises RuntimeError if it is not installed."""
    found = shutil.which("chromium"), shutil.which("chromedriver")
    if not all(found):
        raise RuntimeError("this benchmark needs chromium and chromedriver: make test-page says how to get them")
    options = webdriver.ChromeOptions()
    options.binary_location = str(found[0])
    # Its sandbox does not work for root, nor do large frames in the small shared memory of containers.
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1100,1000"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options, webdriver.ChromeService(str(found[1])))
    try:
        yield driver
    finally:
        driver.quit()


def main(smoke: bool) -> None:
    """Measure and write."""
    begun, presses = time.monotonic(), 5 if smoke else 500
    rng = np.random.default_rng(0)
    with served(REPO / "experiments" / "results" / "doom_take_cover") as address, chromium() as driver:
        driver.get(address)
        while not driver.execute_script("return typeof told !== 'undefined' && told !== null && told.frame > 50"):
            time.sleep(0.1)
        driver.execute_script(LISTEN)
        for _ in range(presses):
            code = KEYS[rng.integers(2)]
            for kind in ("rawKeyDown", "keyUp"):
                driver.execute_cdp_cmd("Input.dispatchKeyEvent", {"type": kind, "code": code, "key": code})
                time.sleep(rng.uniform(0.04, 0.16))
        measured = driver.execute_script("return measured")
    frames, latencies = np.array(measured["frames"]), np.array(measured["latencies"])
    seconds = np.arange(frames[0], frames[-1] - 1000, 1000)
    rate = np.array([((frames >= second) & (frames < second + 1000)).sum() for second in seconds], float)
    rows = [
        result_row("pictures, real, seen and dreamed", rate, "frames/s"),
        result_row("from key to picture", latencies, "ms"),
        result_row("from key to picture, 99th percentile", np.array([np.percentile(latencies, 99)]), "ms"),
    ]
    print("\n".join(f"{row['name']:40} {row['mean']:8.2f} ± {row['std']:.2f} {row['unit']}" for row in rows))
    if not smoke:
        write_result(RESULTS, "play", "full", "python benchmarks/play.py", [0], time.monotonic() - begun, rows)


if __name__ == "__main__":
    main("--smoke" in sys.argv[1:])
