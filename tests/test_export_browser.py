"""The page of examples/browser in headless Chromium: file and microphone get the tags that Python gives."""

import functools
import http.server
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import RATE, write_wav
from exported import no_shape_checks

import patchout
from patchout.export.write import export

PAGE = Path(__file__).parent.parent / "examples" / "browser"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE_S = 240  # on a busy machine

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here"),
    pytest.mark.skipif(
        not (PAGE / "node_modules" / "onnxruntime-web").is_dir(), reason="npm install in examples/browser"
    ),
]


class Browser:
    """Chromium by its DevTools protocol, over the pipes 3 and 4: no driver, no port."""

    def __init__(self, profile: Path, sound: Path) -> None:
        assert CHROMIUM is not None
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()
        quiet = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync"
        quiet += " --disable-background-networking --disable-component-update --mute-audio"
        fake = "--use-fake-ui-for-media-stream --use-fake-device-for-media-stream"
        command = [CHROMIUM, *quiet.split(), *fake.split(), "--autoplay-policy=no-user-gesture-required"]
        command += [f"--use-file-for-fake-audio-capture={sound}", f"--user-data-dir={profile}"]
        pipes = f'exec 3<&{to_browser} 4>&{from_browser}; exec "$@" --remote-debugging-pipe'
        self._process = subprocess.Popen(
            ["bash", "-c", pipes, "bash", *command],
            pass_fds=(to_browser, from_browser),
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._number, self._buffer = 0, b""
        self._session: str | None = None

    def ask(self, method: str, **parameters: Any) -> Any:
        """One command and its answer; events between are passed over."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._buffer:
                piece = os.read(self._in, 65536)
                assert piece, "Chromium has ended"
                self._buffer += piece
            text, _, self._buffer = self._buffer.partition(b"\0")
            answer = json.loads(text)
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def open(self, address: str) -> None:
        """Load a page."""
        target = self.ask("Target.createTarget", url=address)["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def value(self, script: str) -> Any:
        """What an expression is on the page."""
        return self.ask("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def wait(self, state: str) -> None:
        """Until the page is in a state."""
        end = time.monotonic() + PATIENCE_S
        while (now := self.value("document.body?.dataset.state")) != state:
            said = self.value("document.getElementById('status')?.textContent")
            assert now != "failed", said
            assert time.monotonic() < end, said
            time.sleep(0.2)

    def tags(self) -> dict[str, float]:
        """The labels on the page, best first, with their scores."""
        rows = self.value("[...document.querySelectorAll('#tags li')].map((li) => li.innerText.split('\\n'))")
        return {row[0]: float(row[-1]) for row in rows}

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait()
        os.close(self._out)
        os.close(self._in)


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A static server that does not log."""

    extensions_map = http.server.SimpleHTTPRequestHandler.extensions_map | {".mjs": "text/javascript"}

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven seconds of ticks: longer than a window, and one class for the model."""
    wave = 0.003 * np.random.default_rng(0).standard_normal(7 * RATE)
    for start in range(0, len(wave), RATE // 2):
        wave[start : start + 400] += 0.5 * np.exp(-np.arange(400) / 60) * np.sin(0.6 * np.arange(400))
    return write_wav(tmp_path_factory.mktemp("sound") / "ticks.wav", wave.astype(np.float32))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory, sound: Path) -> Iterator[Browser]:
    """The page with the built-in model, loaded from a static server."""
    site = tmp_path_factory.mktemp("site")
    for entry in PAGE.iterdir():
        (site / entry.name).symlink_to(entry)
    (site / "model.onnx").unlink(missing_ok=True)
    with no_shape_checks():
        export(patchout.load("esc10-tiny", "cpu"), site / "model.onnx")
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=os.fspath(site))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    browser = Browser(tmp_path_factory.mktemp("profile"), sound)
    try:
        browser.open(f"http://127.0.0.1:{server.server_port}/")
        browser.wait("ready")
        yield browser
    finally:
        browser.close()
        server.shutdown()
        server.server_close()


def test_a_file_gets_the_tags_that_python_gives_it(browser: Browser, sound: Path) -> None:
    root = browser.ask("DOM.getDocument")["root"]["nodeId"]
    node = browser.ask("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
    browser.ask("DOM.setFileInputFiles", files=[os.fspath(sound)], nodeId=node)
    browser.wait("tagged")
    tags = patchout.tag(patchout.load("esc10-tiny", "cpu"), sound)
    shown = browser.tags()
    assert next(iter(shown)) == tags.labels[0]
    assert shown == pytest.approx(dict(zip(tags.labels, tags.scores, strict=True)), abs=2e-3)


def test_the_microphone_hears_what_is_played_into_it(browser: Browser, sound: Path) -> None:
    browser.value("document.getElementById('microphone').click()")
    browser.wait("heard")
    end = time.monotonic() + PATIENCE_S
    best = patchout.tag(patchout.load("esc10-tiny", "cpu"), sound).labels[0]
    while next(iter(browser.tags())) != best:
        assert time.monotonic() < end, browser.tags()
        time.sleep(0.5)
    browser.value("document.getElementById('microphone').click()")
