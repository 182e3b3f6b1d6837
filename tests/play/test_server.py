"""The web around sessions: who may come in, and what is said over a socket; with the committed agent that catches."""

import json
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from socket import create_server
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from dreamjax.play import __main__ as command, server
from dreamjax.play.session import Session
from dreamjax.reporting.videos import write_video
from dreamjax.storage.agents import save_agent
from tests.play.sessions import RESULTS, opened, stored

CATCH = RESULTS / "dreamerv3_jax_catch"
HOST = "127.0.0.1:8484"
HOME = f"http://{HOST}"
OWN = {"origin": HOME, "host": HOST}  # of the page of this server
TOKEN = "correcthorsebattery"


@pytest.fixture
def sessions() -> list[Session]:
    """Collect the sessions that are opened."""
    return []


@pytest.fixture
def offer(sessions: list[Session], tmp_path: Path) -> server.Offer:
    def open_session() -> Session:
        session = opened(films=tmp_path / "films")
        session._rate = 200.0
        sessions.append(session)
        return session

    return server.Offer({"title": "catch", "rate": 200.0}, open_session, tmp_path / "films")


@pytest.fixture
def client(offer: server.Offer) -> Iterator[TestClient]:
    with TestClient(server.app(offer), base_url=HOME) as client:
        yield client


def unpack(message: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read a frame as the page does."""
    (length,) = struct.unpack_from("<I", message)
    told, at, pictures = json.loads(message[4 : 4 + length]), 4 + length, {}
    for name, (height, width) in told["pictures"].items():
        pictures[name] = np.frombuffer(message, np.uint8, height * width * 3, at).reshape(height, width, 3)
        at += height * width * 3
    assert at == len(message)
    return told, pictures


def draw(socket: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Receive a frame, and say that it is drawn."""
    told, pictures = unpack(socket.receive_bytes())
    socket.send_json({"drawn": told["frame"]})
    return told, pictures


def drawn(socket: Any, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Draw until something is told. Raises AssertionError if it never is."""
    for _ in range(2000):
        told, _ = draw(socket)
        if holds(told):
            return told
    raise AssertionError("it was not told")


def wait(holds: Callable[[], bool]) -> None:
    """Wait for something that happens in another thread. Raises AssertionError if it does not, for a minute."""
    for _ in range(6000):
        if holds():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen")


def test_the_page_is_served_and_nothing_else(client: TestClient, tmp_path: Path) -> None:
    page = client.get("/")
    assert page.status_code == 200 and "dream from here" in page.text
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
    named = re.findall(r'(?:href|src)="(page/[^"]+)"', page.text)
    assert len(named) == 2 and all(client.get(f"/{name}").status_code == 200 for name in named)
    (tmp_path / "films").mkdir()
    (tmp_path / "secret.mp4").write_bytes(b"secret")
    (tmp_path / "films" / "other.mp4").write_bytes(b"other")
    (tmp_path / "films" / "play-002.mp4").symlink_to(tmp_path / "secret.mp4")
    (tmp_path / "films" / "play-001.mp4").write_bytes(b"film")
    assert client.get("/films/play-001.mp4").content == b"film"
    (tmp_path / "films" / "play-001.gif").symlink_to(tmp_path / "secret.mp4")
    for path in (
        *("/films/other.gif", "/films/play-002.gif", "/films/play-003.gif", "/films/play-001.png"),
        *("/films/other.mp4", "/films/play-002.mp4", "/films/play-003.mp4", "/films/..%2Fsecret.mp4", "/films/"),
        *("/films/%2e%2e/secret.mp4", "/page/../server.py", "/page/..%2Fserver.py", "/page/%2e%2e/server.py"),
        *("/server.py", "/agent.npz", "/game"),
    ):
        assert client.get(path).status_code == 404, path


def test_a_film_is_served_as_a_gif_as_well(client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "films" / "play-001.mp4", np.zeros((4, 32, 32, 3), np.uint8), 20)
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "films" / "play-001.gif").symlink_to(tmp_path / "secret")
    gif = client.get("/films/play-001.gif")
    assert gif.headers["content-type"] == "image/gif" and gif.content.startswith(b"GIF89a")
    assert (tmp_path / "secret").read_bytes() == b"secret"
    with monkeypatch.context() as patched:
        patched.setattr(server, "write_gif", None)  # it is kept
        assert client.get("/films/play-001.gif").content == gif.content
    write_video(tmp_path / "films" / "play-001.mp4", np.full((4, 32, 32, 3), 99, np.uint8), 20)
    assert client.get("/films/play-001.gif").content != gif.content  # another film of that number
    (tmp_path / "films" / "play-002.mp4").touch()  # it is being recorded
    assert client.get("/films/play-002.gif").status_code == 404


def test_a_person_plays_over_the_socket(client: TestClient) -> None:
    with client.websocket_connect("/game", headers=OWN) as socket:
        assert socket.receive_json() == {"title": "catch", "rate": 200.0}
        told, pictures = draw(socket)
        assert told["frame"] == 1 and {name: one.shape for name, one in pictures.items()} == {
            name: (64, 64, 3) for name in ("real", "seen", "dream")
        }
        socket.send_json({"set": {"actor": "person", "held": ["ArrowLeft"]}, "at": 7.5})
        told = drawn(socket, lambda told: told["at"] == 7.5 and told["real"]["steps"] > 0)
        assert told["actor"] == "person" and told["real"]["action"] == [0.0]
        socket.send_json({"do": "reset", "number": 41})
        assert drawn(socket, lambda told: told["number"] == 41)


def test_what_makes_no_sense_is_answered_and_the_game_goes_on(client: TestClient) -> None:
    with client.websocket_connect("/game", headers=OWN) as socket:
        socket.receive_json()
        draw(socket)
        senseless = "nonsense", "[1]", '{"drawn": "x"}', '{"set": {"temperature": 1e999}}', '{"do": "fly"}'
        for text in (*senseless, '{"drawn": 1e999}', '{"set": {"speed": 1' + 400 * "0" + "}}", 20_000 * "["):
            socket.send_text(text)
            while "bytes" in (answer := socket.receive()):
                socket.send_json({"drawn": unpack(answer["bytes"])[0]["frame"]})
            assert set(json.loads(answer["text"])) == {"misunderstood"}, text
        assert draw(socket)


def test_frames_are_never_queued(client: TestClient, sessions: list[Session]) -> None:
    with client.websocket_connect("/game", headers=OWN) as socket:
        socket.receive_json()
        numbers = [unpack(socket.receive_bytes())[0]["frame"] for _ in range(server.AHEAD)]
        assert numbers == [1, 2]
        wait(lambda: sessions[0]._frames > 20)
        socket.send_json({"drawn": 2})
        assert unpack(socket.receive_bytes())[0]["frame"] > 20  # the newest, none of those that were missed


def test_two_browsers_have_games_of_their_own_and_a_closed_one_ends(
    client: TestClient, sessions: list[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[Session] = []
    close = Session.close
    monkeypatch.setattr(Session, "close", lambda self: (closed.append(self), close(self)))
    with client.websocket_connect("/game", headers=OWN) as one:
        one.receive_json(), draw(one)
        with client.websocket_connect("/game", headers=OWN) as other:
            other.receive_json(), draw(other)
            other.send_json({"set": {"temperature": 2.0, "view": "dream"}})
            assert drawn(other, lambda told: told["view"] == "dream")["temperature"] == 2.0
            told, _ = draw(one)
            assert (told["view"], told["temperature"]) == ("both", 1.0)
            assert len(sessions) == 2 and closed == []
        wait(lambda: len(closed) == 1)
        assert closed == [sessions[1]]
        before, _ = draw(one)
        assert drawn(one, lambda told: told["frame"] > before["frame"] + 5)
    wait(lambda: len(closed) == 2)


def test_there_are_only_so_many_games(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MOST_GAMES", 1)
    with client.websocket_connect("/game", headers=OWN) as one:
        one.receive_json()
        with client.websocket_connect("/game", headers=OWN) as other:
            assert "close one first" in other.receive_json()["refused"]


def test_a_game_that_cannot_begin_says_why(offer: server.Offer) -> None:
    def fails() -> Session:
        raise RuntimeError("a worker died")

    with (
        TestClient(server.app(offer._replace(open_session=fails)), base_url=HOME) as client,
        client.websocket_connect("/game", headers=OWN) as socket,
    ):
        assert socket.receive_json() == {"refused": "the game cannot begin: a worker died"}


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:1"},
        {"origin": "http://localhost:8484"},
        {"origin": f"{HOME}.evil.example"},
        {"origin": "http://evil.example:8484", "host": "evil.example:8484"},  # a name that was bent to this machine
    ],
)
def test_other_pages_cannot_play(client: TestClient, headers: dict[str, str]) -> None:
    with (
        pytest.raises(WebSocketDisconnect),
        client.websocket_connect("/game", headers={"host": HOST} | headers) as socket,
    ):
        socket.receive_json()


def test_other_names_of_this_machine_are_refused(client: TestClient) -> None:
    assert client.get("/", headers={"host": "evil.example:8484"}).status_code == 400
    assert client.get("/", headers={"host": "localhost:8484"}).status_code == 200


def test_with_a_token_only_who_knows_it_comes_in(offer: server.Offer) -> None:
    own = {"origin": "http://192.0.2.1:8484", "host": "192.0.2.1:8484"}
    with TestClient(server.app(offer, TOKEN), base_url=own["origin"]) as client:
        for query in ("", "?token=", "?token=wrong", f"?token={TOKEN}x", "?token=%C3%A9"):
            assert client.get(f"/{query}").status_code == 403
            assert client.get(f"/films/play-001.mp4{query}").status_code == 404
            with pytest.raises(WebSocketDisconnect), client.websocket_connect(f"/game{query}", headers=own) as socket:
                socket.receive_json()
        page = client.get(f"/?token={TOKEN}")
        assert page.status_code == 200 and page.headers["referrer-policy"] == "no-referrer"
        with client.websocket_connect(f"/game?token={TOKEN}", headers=own) as socket:
            assert socket.receive_json()["title"] == "catch"
        foreign = own | {"origin": "http://evil.example"}
        with (
            pytest.raises(WebSocketDisconnect),
            client.websocket_connect(f"/game?token={TOKEN}", headers=foreign) as socket,
        ):
            socket.receive_json()


# The command


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([CATCH, "--host", "0.0.0.0"], "--host 0.0.0.0 can be reached from other machines: add --token"),
        ([CATCH, "--host", "0.0.0.0", "--token", "short"], "a token has at least 16 letters and digits"),
        ([CATCH, "--token", "with spaces and & more"], "a token has at least 16 letters and digits"),
        ([CATCH, "--rate", "0"], "--rate lies between 0.1 and 240"),
        ([CATCH, "--port", "99999"], "--port lies between 0 and 65535"),
        ([CATCH, "--dream", "--env", "catch"], "--dream plays without an environment"),
        ([CATCH / "nothing"], "there is no agent at"),
        ([CATCH, "--env", "chess"], "unknown environment 'chess'"),
        ([CATCH, "--env", "dodge"], "Is 'dodge' the environment that it was trained in?"),
    ],
)
def test_the_command_line_says_what_is_wrong(
    arguments: list[Any], why: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["play", "--port", "0", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 2 and why in capsys.readouterr().err


def test_a_file_that_cannot_be_read_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(CATCH / "agent.npz", tmp_path)
    (tmp_path / "agent.json").mkdir()
    monkeypatch.setattr(sys, "argv", ["play", str(tmp_path), "--port", "0"])
    with pytest.raises(SystemExit):
        command.main()
    assert f"Is a directory: '{tmp_path / 'agent.json'}'" in capsys.readouterr().err


def test_a_port_that_is_taken_is_said_before_anything_is_compiled(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(sys, "argv", ["play", str(CATCH), "--port", str(port)])
        with pytest.raises(SystemExit):
            command.main()
    said = capsys.readouterr().err
    assert f"cannot listen at 127.0.0.1:{port}" in said and "name another --port, 0 for a free one" in said
    assert "Compiling" not in said


def test_an_agent_that_does_not_say_its_environment_asks_for_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = stored("dreamerv3_jax_catch")
    save_agent(tmp_path / "agent.npz", found.config, found.agent, found.params._replace(starts=()))
    monkeypatch.setattr(sys, "argv", ["play", str(tmp_path), "--port", "0"])
    with pytest.raises(SystemExit):
        command.main()
    assert "does not say which environment it was trained in: name it with --env" in capsys.readouterr().err
    save_agent(tmp_path / "agent.npz", found.config, found.agent, found.params, task="os:abort")  # by a stranger
    with pytest.raises(SystemExit):
        command.main()
    assert "names code to run as its environment: if you trust it, say --env os:abort" in capsys.readouterr().err
    save_agent(tmp_path / "agent.npz", found.config, found.agent, found.params._replace(starts=()))
    monkeypatch.setattr(sys, "argv", ["play", str(tmp_path), "--dream", "--port", "0"])
    with pytest.raises(SystemExit):
        command.main()
    assert "brings no starts for its dreams along: name its environment with --env" in capsys.readouterr().err


def test_the_command_serves_until_it_is_interrupted() -> None:
    line = [sys.executable, "-m", "dreamjax.play", str(CATCH), "--port", "0", "--no-browser"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = process.stdout.readline().split()[2]
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", address)
        with urllib.request.urlopen(address) as page:
            assert b"dream from here" in page.read()
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 0 and "Traceback" not in told


def test_without_the_extra_the_command_names_it() -> None:
    code = "import sys; sys.modules['starlette'] = None; sys.argv = ['play', 'x']; import dreamjax.play.__main__"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].endswith(
        "the page needs starlette, which is not installed: in a checkout of dreamjax, run pip install -e '.[play]'"
    )
