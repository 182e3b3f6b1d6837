"""The web around sessions: one page, one socket for each person, and nothing else.

Who may come in: on the loopback interface, pages of this server alone, which their `Host` and `Origin` say; elsewhere,
also those who know the token.
"""

import asyncio
import json
import secrets
import socket
import struct
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from dreamjax._extras import extra
from dreamjax.play.recording import is_film
from dreamjax.play.session import Frame, Session
from dreamjax.reporting.videos import write_gif

with extra("play", "the page"):
    import uvicorn
    import websockets as websockets  # without it uvicorn serves no sockets, and says so only when one is asked for
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.requests import HTTPConnection, Request
    from starlette.responses import FileResponse, PlainTextResponse, Response
    from starlette.routing import Mount, Route, WebSocketRoute
    from starlette.staticfiles import StaticFiles
    from starlette.websockets import WebSocket, WebSocketDisconnect

LOOPBACK = ("127.0.0.1", "localhost")
MOST_GAMES = 8  # at once
AHEAD = 2  # frames that are under way to a browser which has not drawn them yet
PAGE = Path(__file__).parent / "page"
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'",
    "Referrer-Policy": "no-referrer",  # the address may hold the token
    "Cache-Control": "no-store",
}


class Offer(NamedTuple):
    """What the page offers."""

    about: Mapping[str, Any]  # for JSON: "title", "rate", "entries" of the action, "numbers", "seeds"
    open_session: Callable[[], Session]
    films: Path


def app(offer: Offer, token: str | None = None) -> Starlette:
    """Make the web application. Without a token it answers to loopback names only."""
    games: set[_Game] = set()
    writing = asyncio.Lock()  # held while a film is turned into a GIF

    def is_known(connection: HTTPConnection) -> bool:
        given = connection.query_params.get("token", "")
        return token is None or secrets.compare_digest(given.encode(), token.encode())

    async def page(request: Request) -> Response:
        if not is_known(request):
            return PlainTextResponse("This page needs its token: add ?token=... to the address.", 403)
        return FileResponse(PAGE / "page.html", headers=HEADERS)

    async def film(request: Request) -> Response:
        path = offer.films / request.path_params["name"]
        recorded = path.with_suffix(".mp4") if path.suffix == ".gif" else path
        if not is_known(request) or not is_film(recorded):
            return PlainTextResponse("There is no such film.", 404)
        if path != recorded:
            try:
                async with writing:
                    if not _is_of(path, recorded):
                        await run_in_threadpool(write_gif, path, recorded)
            except ValueError:  # it is still being recorded
                return PlainTextResponse("There is no such film yet.", 404)
        return FileResponse(path, headers=HEADERS)

    async def meet(browser: WebSocket) -> None:
        if not (is_known(browser) and _is_of_our_page(browser)):
            await browser.close(1008)  # before it is accepted: 403
            return
        await browser.accept()
        if len(games) >= MOST_GAMES:
            await _refuse(browser, f"{MOST_GAMES} games are under way, as many as there may be: close one first")
            return
        game = _Game(browser, offer)
        games.add(game)
        try:
            await game.play()
        finally:
            games.discard(game)

    return Starlette(
        routes=[
            Route("/", page),
            Route("/films/{name}", film),
            WebSocketRoute("/game", meet),
            Mount("/page", StaticFiles(directory=PAGE)),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=["*"] if token else list(LOOPBACK))],
    )


def serve(offer: Offer, listening: socket.socket, token: str | None = None) -> None:
    """Serve at a socket that listens, until Ctrl-C."""
    config = uvicorn.Config(
        app(offer, token),
        log_level="warning",
        ws_per_message_deflate=False,  # which would cost more time than it saves
        ws_max_size=2**16,
        timeout_graceful_shutdown=5,
    )
    with suppress(KeyboardInterrupt):  # which comes once more when all games have ended
        uvicorn.Server(config).run([listening])


def pack(frame: Frame) -> bytes:
    """Write a frame as one message: length of the header, header in JSON, bytes of the pictures in its order."""
    sizes = {name: list(picture.shape[:2]) for name, picture in frame.pictures.items()}
    header = json.dumps(frame.told | {"pictures": sizes}, allow_nan=False).encode()
    return b"".join([struct.pack("<I", len(header)), header, *(one.tobytes() for one in frame.pictures.values())])


def _is_of(gif: Path, film: Path) -> bool:
    """Whether a GIF was made of a film already, and not of an earlier one of that number, and is no link elsewhere."""
    is_there = gif.is_file() and not gif.is_symlink()
    return is_there and gif.stat().st_mtime_ns >= film.stat().st_mtime_ns


def _is_of_our_page(browser: WebSocket) -> bool:
    """Whether a page of this server asks. Browsers say truly where a page is from, and let it connect anywhere."""
    origin = urlsplit(browser.headers.get("origin", ""))
    return origin.scheme in ("http", "https") and origin.netloc == browser.headers.get("host")


async def _refuse(browser: WebSocket, why: str) -> None:
    await browser.send_json({"refused": why})
    await browser.close(1013)


class _Game:
    """A session and the browser that it is for. All that computes runs in a thread of its own, one thing at a time."""

    def __init__(self, browser: WebSocket, offer: Offer) -> None:
        self._browser, self._offer = browser, offer
        self._loop = asyncio.get_running_loop()
        self._woken = asyncio.Event()
        self._under_way: deque[int] = deque()  # numbers of frames that were sent, and not drawn yet
        self._waiting: Frame | None = None  # newest one, which is sent when the browser has drawn those before it

    async def play(self) -> None:
        """Play until the browser is gone."""
        with ThreadPoolExecutor(1, "dreamjax-play") as thread:
            self._thread = thread
            try:
                self._session = await self._call(self._offer.open_session)
            except (RuntimeError, ValueError, ImportError, OSError) as error:
                await _refuse(self._browser, f"the game cannot begin: {error}")
                return
            self._session.heard = lambda: self._loop.call_soon_threadsafe(self._woken.set)
            try:
                await self._browser.send_json(dict(self._offer.about))
                both = [asyncio.create_task(one) for one in (self._listen(), self._advance())]
                try:
                    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for task in both:
                        task.cancel()
                    ended = await asyncio.gather(*both, return_exceptions=True)
            except WebSocketDisconnect:
                return
            finally:
                await asyncio.shield(self._call(self._session.close))
            for problem in ended:
                if isinstance(problem, Exception) and not isinstance(problem, WebSocketDisconnect):
                    raise problem

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self._loop.run_in_executor(self._thread, function, *arguments)

    async def _listen(self) -> None:
        """Take in what the browser says; what makes no sense is answered, and changes nothing."""
        while True:
            try:
                text = await self._browser.receive_text()
                message = json.loads(text)
                if not isinstance(message, dict):
                    raise ValueError(f"expected a dictionary, got {text[:100]!r}")
                if message.keys() == {"drawn"}:
                    drawn = int(message["drawn"])
                    while self._under_way and self._under_way[0] <= drawn:
                        self._under_way.popleft()
                    await self._send()
                else:
                    self._session.hear(message)
            except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
                await self._browser.send_json({"misunderstood": str(error)})

    async def _advance(self) -> None:
        """Tick at the environment's own rate; what is late is not made up for."""
        due, steps = self._loop.time(), True
        while True:
            self._woken.clear()
            self._waiting = await self._call(self._session.tick, steps)
            await self._send()
            if steps:
                due = max(due + self._session.seconds, self._loop.time())
            steps = await self._next(due)

    async def _next(self, due: float) -> bool:
        """Wait for the next step, and return True; False if something was ordered that need not wait for it."""
        while True:
            if self._session.has_orders:
                return False
            timeout = None if self._session.settings.paused else due - self._loop.time()
            if timeout is not None and timeout <= 0:
                return True
            try:
                await asyncio.wait_for(self._woken.wait(), timeout)
            except TimeoutError:
                return True
            self._woken.clear()

    async def _send(self) -> None:
        """Send the newest frame, if the browser is not behind: it never has to draw old ones first."""
        if self._waiting is not None and len(self._under_way) < AHEAD:
            frame, self._waiting = self._waiting, None
            self._under_way.append(frame.told["frame"])
            await self._browser.send_bytes(pack(frame))
