"""Chromium for tests of pages, by its DevTools protocol."""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE_S = 240  # on a busy machine


class Browser:
    """Chromium by its DevTools protocol, over the pipes 3 and 4: no driver, no port."""

    def __init__(self, profile: Path, sound: Path | None = None) -> None:
        assert CHROMIUM is not None
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()
        quiet = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync"
        quiet += " --disable-background-networking --disable-component-update --mute-audio"
        fake = "--use-fake-ui-for-media-stream --use-fake-device-for-media-stream"
        command = [CHROMIUM, *quiet.split(), *fake.split(), "--autoplay-policy=no-user-gesture-required"]
        command += [f"--use-file-for-fake-audio-capture={sound}"] if sound else []
        command += [f"--user-data-dir={profile}"]
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
        return self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)[
            "result"
        ].get("value")

    def until(self, script: str) -> Any:
        """The value of an expression on the page, as soon as it is true."""
        end = time.monotonic() + PATIENCE_S
        while not (value := self.value(script)):
            assert time.monotonic() < end, script
            time.sleep(0.1)
        return value

    def press(self, *keys: str) -> None:
        """Press keys one after the other; letters, or names such as Enter."""
        for key in keys:
            text: dict[str, Any] = {"text": key} if len(key) == 1 else {}
            if key == "Enter":
                text = {"text": "\r", "windowsVirtualKeyCode": 13}
            self.ask("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
            self.ask("Input.dispatchKeyEvent", type="keyUp", key=key)

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Drag with the mouse, in pixels of the window."""
        for kind, (x, y), buttons in (
            ("mousePressed", start, 1),
            ("mouseMoved", ((start[0] + end[0]) / 2, end[1]), 1),
            ("mouseMoved", end, 1),
            ("mouseReleased", end, 0),
        ):
            pressed = {"button": "left", "buttons": buttons, "clickCount": 1}
            self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, **pressed)

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait()
        os.close(self._out)
        os.close(self._in)
