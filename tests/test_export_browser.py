"""The page of examples/browser in headless Chromium: file and microphone get the tags that Python gives."""

import functools
import http.server
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromium import CHROMIUM, PATIENCE_S, Browser
from conftest import RATE, write_wav
from exported import no_shape_checks

import patchout
from patchout.export.write import export

PAGE = Path(__file__).parent.parent / "examples" / "browser"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here"),
    pytest.mark.skipif(
        not (PAGE / "node_modules" / "onnxruntime-web").is_dir(), reason="npm install in examples/browser"
    ),
]


class Page(Browser):
    """The page of examples/browser."""

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
def browser(tmp_path_factory: pytest.TempPathFactory, sound: Path) -> Iterator[Page]:
    """The page with the built-in model, loaded from a static server."""
    site = tmp_path_factory.mktemp("site")
    for entry in PAGE.iterdir():
        (site / entry.name).symlink_to(entry)
    (site / "model.onnx").unlink(missing_ok=True)
    with no_shape_checks():
        export(patchout.load("sounds-tiny", "cpu"), site / "model.onnx")
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=os.fspath(site))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    browser = Page(tmp_path_factory.mktemp("profile"), sound)
    try:
        browser.open(f"http://127.0.0.1:{server.server_port}/")
        browser.wait("ready")
        yield browser
    finally:
        browser.close()
        server.shutdown()
        server.server_close()


def test_a_file_gets_the_tags_that_python_gives_it(browser: Page, sound: Path) -> None:
    root = browser.ask("DOM.getDocument")["root"]["nodeId"]
    node = browser.ask("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
    browser.ask("DOM.setFileInputFiles", files=[os.fspath(sound)], nodeId=node)
    browser.wait("tagged")
    tags = patchout.tag(patchout.load("sounds-tiny", "cpu"), sound)
    shown = browser.tags()
    assert next(iter(shown)) == tags.labels[0]
    assert shown == pytest.approx(dict(zip(tags.labels, tags.scores, strict=True)), abs=2e-3)


def test_the_microphone_hears_what_is_played_into_it(browser: Page, sound: Path) -> None:
    browser.value("document.getElementById('microphone').click()")
    browser.wait("heard")
    end = time.monotonic() + PATIENCE_S
    best = patchout.tag(patchout.load("sounds-tiny", "cpu"), sound).labels[0]
    while next(iter(browser.tags())) != best:
        assert time.monotonic() < end, browser.tags()
        time.sleep(0.5)
    browser.value("document.getElementById('microphone').click()")
