"""Chromium without a window, led over a pipe by its DevTools protocol: no driver, no network."""

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

QUIET = [
    *("headless", "no-sandbox", "disable-gpu", "no-first-run", "disable-quic", "disable-sync"),
    *("disable-background-networking", "disable-component-update", "hide-scrollbars"),
    *("disable-dev-shm-usage", "remote-debugging-pipe"),
]


def find() -> str | None:
    """Return the browser that is on the PATH."""
    return shutil.which("chromium") or shutil.which("google-chrome")


class Page:
    """A page that is open, and what its console has said."""

    def __init__(self, to: int, back: int) -> None:
        self.to, self.back, self.rest = to, back, b""
        self.numbers = itertools.count(1)
        self.session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol, and return its result."""
        number = next(self.numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + 60
        while True:
            found = self._read(end)
            if found.get("id") == number:
                if "error" in found:
                    raise RuntimeError(f"{method}: {found['error']}")
                result: dict[str, Any] = found["result"]
                return result
            self.events.append(found)

    def _read(self, end: float) -> dict[str, Any]:
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.back], [], [], max(0, end - time.monotonic()))
            if not ready:
                raise TimeoutError("the browser does not answer")
            chunk = os.read(self.back, 1 << 20)
            if not chunk:
                raise EOFError("the browser has ended")
            self.rest += chunk
        text, _, self.rest = self.rest.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        return message

    def open(self, path: Path, width: int, dark: bool, print_: bool = False) -> None:
        """Show a file in a window of a width in pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media="print" if print_ else "", features=[scheme])
        self.events.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())
        self.wait("document.readyState === 'complete'")

    def wait(self, condition: str, seconds: float = 30) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + seconds
        while not self.run(condition):
            if time.monotonic() > end:
                raise TimeoutError(condition)
            time.sleep(0.05)

    def run(self, script: str) -> Any:
        """Return the value of an expression in the page, if it goes away meanwhile in the next."""
        how = {"expression": script, "returnByValue": True, "awaitPromise": True}
        try:
            found = self.call("Runtime.evaluate", **how)
        except RuntimeError as error:  # it has loaded itself again
            if "navigated" not in str(error):
                raise
            found = self.call("Runtime.evaluate", **how)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"]["exception"].get("description"))
        return found["result"].get("value")

    def press(self, key: str, code: int) -> None:
        """Press and release a key."""
        text = {"text": "\r"} if key == "Enter" else {"text": " "} if key == " " else {}
        for kind in ("keyDown", "keyUp"):
            more = text if kind == "keyDown" else {}
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **more
            )

    def said(self) -> list[str]:
        """Return the errors and warnings of the console, and what was asked of the network."""
        self.run("1")  # events before this answer have come
        found = []
        for event in self.events:
            what, of = event.get("method"), event.get("params", {})
            if what == "Runtime.exceptionThrown":
                found.append(json.dumps(of["exceptionDetails"])[:500])
            elif what == "Runtime.consoleAPICalled" and of["type"] in ("error", "warning"):
                found.append(json.dumps(of["args"])[:500])
            elif what == "Log.entryAdded" and of["entry"]["level"] in ("error", "warning"):
                found.append(of["entry"]["text"])
            elif what == "Network.requestWillBeSent":
                address = of["request"]["url"]
                if not address.startswith(("file:", "data:", "blob:")):
                    found.append(f"asked for {address}")
        return found

    def picture(self, path: Path) -> None:
        """Keep a picture of the whole page (PNG)."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        found = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(found["data"]))


@contextmanager
def opened(profile: Path) -> Iterator[Page]:
    """Start the browser with a profile of its own, and end it."""
    browser = find()
    assert browser
    theirs_in, to = os.pipe()
    back, theirs_out = os.pipe()

    def place() -> None:  # the protocol reads from 3 and writes to 4
        os.dup2(theirs_in, 103)
        os.dup2(theirs_out, 104)
        os.dup2(103, 3)
        os.dup2(104, 4)

    process = subprocess.Popen(
        [browser, *(f"--{flag}" for flag in QUIET), f"--user-data-dir={profile}", "about:blank"],
        preexec_fn=place,
        close_fds=False,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        yield Page(to, back)
    finally:
        os.close(to)  # it ends when nobody leads it
        os.close(back)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
