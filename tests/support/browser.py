"""A page as a browser has it: one Chromium for all pages of a process, spoken to over its debugging pipe."""

from __future__ import annotations

import atexit
import fcntl
import functools
import json
import os
import select
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

TIMEOUT_SEC = 120
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe")


def loaded(page: Path, fragment: str = "", *, flags: tuple[str, ...] = ()) -> str:
    """The page as Chromium has it two seconds, of the page's own time, after it was loaded.

    Raises:
        AssertionError: the page has written to the console, or an exception of its was not caught.
    """
    dom, console = opened(page, fragment, flags=flags)
    console = [line for line in console if "cannot be played" not in line]
    assert not console, console
    return dom


def opened(page: Path, fragment: str = "", *, flags: tuple[str, ...] = ()) -> tuple[str, list[str]]:
    """The same, and what its console says."""
    return _browser(flags).load(f"{page.resolve().as_uri()}{fragment}")


@functools.cache
def _browser(flags: tuple[str, ...]) -> Browser:
    return Browser(flags)


class Browser:
    """A Chromium that ends with this process, as its pipe does."""

    def __init__(self, flags: tuple[str, ...]) -> None:
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        given = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, 10) for descriptor in (theirs_in, theirs_out)]
        self._profile = tempfile.TemporaryDirectory(prefix="adatad_browser_", ignore_cleanup_errors=True)
        command = f'exec chromium "$@" 3<&{given[0]} 4>&{given[1]}'
        self._process = subprocess.Popen(
            ["bash", "-c", command, "-", *FLAGS, *flags, f"--user-data-dir={self._profile.name}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=given,
            start_new_session=True,
        )
        for descriptor in (theirs_in, theirs_out, *given):
            os.close(descriptor)
        self._sent = 0
        self._received = b""
        self._events: set[str] = set()  # that came since a page was asked for
        atexit.register(self._close)

    def load(self, address: str) -> tuple[str, list[str]]:
        """Open an address in a tab of its own: the page, and its console's lines."""
        tab = self._ask("Target.createTarget", url="about:blank")["targetId"]
        session = self._ask("Target.attachToTarget", targetId=tab, flatten=True)["sessionId"]
        console: list[str] = []
        for domain in ("Page", "Runtime", "Log"):
            self._ask(f"{domain}.enable", session, console)
        self._events.clear()
        self._ask("Page.navigate", session, console, url=address)
        while "Page.loadEventFired" not in self._events:
            self._next(session, console)
        policy = {"policy": "pauseIfNetworkFetchesPending", "budget": 2000}
        self._ask("Emulation.setVirtualTimePolicy", session, console, **policy)
        while "Emulation.virtualTimeBudgetExpired" not in self._events:
            self._next(session, console)
        dom = self._ask("Runtime.evaluate", session, console, expression="document.documentElement.outerHTML")
        self._ask("Target.closeTarget", targetId=tab)
        return dom["result"]["value"], console

    def _close(self) -> None:
        os.close(self._out)  # at which Chromium ends
        self._process.wait(TIMEOUT_SEC)
        self._profile.cleanup()

    def _ask(
        self, method: str, session: str | None = None, console: list[str] | None = None, **parameters: object
    ) -> dict[str, Any]:
        """Send a command of the DevTools protocol and wait for its answer."""
        self._sent += 1
        message = {"id": self._sent, "method": method, "params": parameters} | (
            {"sessionId": session} if session else {}
        )
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (answer := self._next(session, console)).get("id") != self._sent:
            pass
        assert "error" not in answer, (method, answer)
        return answer["result"]

    def _next(self, session: str | None, console: list[str] | None) -> dict[str, Any]:
        """The next answer or event; what a page of the session says is added to its console."""
        end = time.monotonic() + TIMEOUT_SEC
        while b"\0" not in self._received:
            assert select.select([self._in], [], [], max(0, end - time.monotonic()))[0], "the browser does not answer"
            part = os.read(self._in, 1 << 20)
            assert part, f"the browser has ended: {self._process.poll()}"
            self._received += part
        text, _, self._received = self._received.partition(b"\0")
        message = json.loads(text)
        if message.get("sessionId") == session:
            self._events.add(message.get("method", ""))
        if console is not None and message.get("sessionId") == session:
            console.extend(_said(message))
        return message


def _said(message: dict[str, Any]) -> list[str]:
    """What an event adds to the console."""
    match message:
        case {"method": "Runtime.consoleAPICalled", "params": {"args": values}}:
            return [" ".join(str(value.get("value", value.get("description"))) for value in values)]
        case {"method": "Runtime.exceptionThrown", "params": {"exceptionDetails": details}}:
            return [details.get("exception", {}).get("description", details["text"])]
        case {"method": "Log.entryAdded", "params": {"entry": entry}} if entry["source"] != "network":  # a lost video
            return [entry["text"]]
    return []
