"""A headless Chromium for tests, driven through a pipe by its DevTools protocol.

No package is needed for that: the browser reads commands from its file descriptor 3 and writes
answers to 4, each a JSON text that ends with a zero byte.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SECONDS_OF_AN_ANSWER = 60


def find_browser() -> str | None:
    """A Chromium of this machine, after an installation where that is allowed.

    On a machine of continuous integration, which says so by ``CI``, root installs the package.
    """
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if not found and os.environ.get("CI") and os.geteuid() == 0 and shutil.which("apt-get"):
        for command in (["update", "-qq"], ["install", "-y", "-qq", "chromium"]):
            subprocess.run(
                ["apt-get", *command],
                check=False,
                capture_output=True,
                env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            )
        found = next(filter(None, map(shutil.which, NAMES)), None)
    return found


class Browser:
    """A running browser with one tab; use it as a context manager."""

    def __init__(self, program: str, folder: Path) -> None:
        self.events = []
        self._program, self._folder = program, folder
        self._log = folder / "browser.log"
        self._number = 0
        self._session = None
        self._unread = b""

    def __enter__(self):
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        # They must be 3 and 4 there, and closed on this side.
        command = f'exec 3<&{to_browser} 4>&{from_browser}; exec "$@"'
        options = [
            *("--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu"),
            *("--no-first-run", "--disable-dev-shm-usage", "--hide-scrollbars"),
            *("--disable-background-networking", "--disable-component-update"),
            f"--user-data-dir={self._folder / 'profile'}",
        ]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                ["bash", "-c", command, "-", self._program, *options, "about:blank"],
                pass_fds=(to_browser, from_browser),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                env={**os.environ, "HOME": str(self._folder)},
            )
        os.close(to_browser)
        os.close(from_browser)
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, *_):
        self._session = None
        try:
            self.call("Browser.close")
            self._process.wait(timeout=SECONDS_OF_AN_ANSWER)
        finally:
            self._process.kill()
            self._process.wait()
            os.close(self._write)
            os.close(self._read)

    def call(self, method, **parameters):
        """The result of a command; what happens meanwhile is kept in ``events``."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer)
                return answer["result"]
            self.events.append(answer)

    def wait_for(self, event):
        """Wait until the browser has told of an event since ``events`` was emptied."""
        while not any(each.get("method") == event for each in self.events):
            self.events.append(self._next())

    def _next(self):
        end = time.monotonic() + SECONDS_OF_AN_ANSWER
        while b"\0" not in self._unread:
            left = end - time.monotonic()
            assert left > 0 and select.select([self._read], [], [], left)[0], "no answer"
            block = os.read(self._read, 1 << 16)
            assert block, f"the browser has ended: {self._log.read_text()[-500:]}"
            self._unread += block
        message, _, self._unread = self._unread.partition(b"\0")
        return json.loads(message)

    def open(self, path, *, width, height=900, scheme="light", media=""):
        """Open a file as a screen of that width shows it, and wait until all is there."""
        self.events.clear()
        # What a page does without scripts is what it does; questions of tests are no scripts of it.
        self.call("Emulation.setScriptExecutionDisabled", value=True)
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", media=media, features=[feature])
        self.call("Page.navigate", url=Path(path).as_uri())
        self.wait_for("Page.loadEventFired")

    def evaluate(self, expression):
        """The value of an expression of JavaScript in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def screenshot(self, path):
        """Write the whole page as a picture."""
        found = self.call("Page.captureScreenshot", captureBeyondViewport=True, format="png")
        Path(path).write_bytes(base64.b64decode(found["data"]))

    def requests(self):
        """Addresses that were asked for since the page was opened."""
        found = [each for each in self.events if each["method"] == "Network.requestWillBeSent"]
        return [each["params"]["request"]["url"] for each in found]

    def complaints(self):
        """What the console and the log say, and exceptions."""
        names = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [each["params"] for each in self.events if each["method"] in names]
