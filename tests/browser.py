"""Chromium without a window, driven over its pipe (`--remote-debugging-pipe`): no driver, no socket, no package."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome") if os.name == "posix" else ()
CHROMIUM = next((path for name in _NAMES if (path := shutil.which(name))), None)


class Browser:
    """One page of a browser. ``requested`` are the addresses that it asked for, but for what stands in the page."""

    def __init__(self, profile: Path, width: int = 1600, height: int = 900):
        import fcntl  # not on Windows

        assert CHROMIUM is not None
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        theirs_in, theirs_out = (fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (theirs_in, theirs_out))

        def place() -> None:  # the browser reads commands from descriptor 3 and answers on 4
            os.dup2(theirs_in, 3)
            os.dup2(theirs_out, 4)

        args = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe"]
        args += [f"--user-data-dir={profile}", f"--window-size={width},{height}", "about:blank"]
        self._process = subprocess.Popen(
            [CHROMIUM, *args], preexec_fn=place, pass_fds=(3, 4), stderr=subprocess.DEVNULL
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._rest, self._last, self.requested = b"", 0, []
        self._session = None
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(t["targetId"] for t in targets if t["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        os.write(self._out, b'{"id": 0, "method": "Browser.close"}\0')  # with all its processes
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)
        os.close(self._out)

    def call(self, method: str, **params):
        """Send a command and wait for its result."""
        self._last += 1
        wanted = self._last
        message = {"id": wanted, "method": method, "params": params}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            said = self._next()
            if said.get("id") == wanted:
                assert "error" not in said, said
                return said["result"]
            self._note(said)

    def _next(self) -> dict:
        while b"\0" not in self._rest:
            data = os.read(self._in, 1 << 20)
            assert data, "the browser has ended"
            self._rest += data
        text, _, self._rest = self._rest.partition(b"\0")
        return json.loads(text)

    def _note(self, said: dict) -> None:
        if said.get("method") == "Network.requestWillBeSent":
            url = said["params"]["request"]["url"]
            self.requested += [] if url.startswith("data:") else [url]

    def open(self, page: Path) -> None:
        """Open a file, and wait until all of it is loaded."""
        self.requested.clear()
        self.call("Page.navigate", url=page.resolve().as_uri())
        deadline = time.monotonic() + 60
        while self.run("document.readyState") != "complete" or self.run("location.href") == "about:blank":
            assert time.monotonic() < deadline, "the page does not load"
            time.sleep(0.02)

    def run(self, script: str):
        """The value of an expression in the page."""
        said = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in said, said
        return said["result"].get("value")
