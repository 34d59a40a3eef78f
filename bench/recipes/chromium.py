"""A headless Chromium, driven by the DevTools protocol over two pipes."""
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any

CHROMIUM = (shutil.which("chromium") or shutil.which("chromium-browser")
            or shutil.which("google-chrome"))
_ARGUMENTS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
              "--disable-background-networking", "--disable-component-update", "--disable-sync",
              "--mute-audio", "--remote-debugging-pipe")


@contextmanager
def browser(*arguments: str) -> "Iterator[Browser]":
    """Raises ValueError if there is no Chromium."""
    if CHROMIUM is None:
        raise ValueError("no Chromium here; install one: apt-get install chromium")
    to_child, from_parent = os.pipe()
    to_parent, from_child = os.pipe()
    with TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        # the protocol requires file descriptors 3 and 4; a shell puts the pipes there
        line = f'exec "$0" "$@" 3<&{to_child} 4>&{from_child}'
        command = ["bash", "-c", line, CHROMIUM, *_ARGUMENTS, f"--user-data-dir={profile}",
                   *arguments]
        process = subprocess.Popen(command, pass_fds=(to_child, from_child),
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(to_child)
        os.close(from_child)
        try:
            yield Browser(from_parent, to_parent)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            os.close(from_parent)
            os.close(to_parent)


class Browser:
    """One page. `errors`: what the console reported, and uncaught exceptions."""

    def __init__(self, write: int, read: int):
        self._write, self._read = write, read
        self._buffer, self._id, self._session = b"", 0, ""
        self.errors: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target,
                                  flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, seconds: float = 120, **params: Any) -> dict:
        """Result of one command. Raises RuntimeError if it is refused, TimeoutError."""
        self._id += 1
        message = {"id": self._id, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            answer = self._next(end)
            if answer and answer.get("id") == self._id:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
        raise TimeoutError(f"{method}: no answer in {seconds:.0f} s")

    def evaluate(self, script: str, seconds: float = 120) -> Any:
        """Value of a JavaScript expression; a promise is awaited. RuntimeError if it throws."""
        answer = self.call("Runtime.evaluate", seconds, expression=script, awaitPromise=True,
                           returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(_exception(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def wait(self, condition: str, seconds: float = 60) -> float:
        """Until a JavaScript condition holds; returns the seconds waited. Raises TimeoutError."""
        begin = time.monotonic()
        while time.monotonic() - begin < seconds:
            if self.evaluate(f"(async () => !!({condition}))()"):
                return time.monotonic() - begin
            time.sleep(0.05)
        raise TimeoutError(f"{condition}: not within {seconds:.0f} s; errors: {self.errors}")

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)

    def set_viewport(self, width: int, height: int, dark: bool = False, scale: float = 1,
                     phone: bool = False) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=scale, mobile=phone)
        self.call("Emulation.setEmulatedMedia",
                  features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])

    def _next(self, end: float) -> dict | None:
        """The next message, recorded if it is an error; None if there is none until `end`."""
        while b"\0" not in self._buffer:
            if not select.select([self._read], [], [], max(0.0, end - time.monotonic()))[0]:
                return None
            part = os.read(self._read, 1 << 20)
            if not part:
                raise RuntimeError("chromium ended")
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(line)
        self._record_errors(message.get("method"), message.get("params", {}))
        return message

    def _record_errors(self, method: str | None, params: dict) -> None:
        if method == "Runtime.exceptionThrown":
            self.errors.append(_exception(params["exceptionDetails"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.errors.append(f"{params['entry']['text']} ({params['entry'].get('url', '')})")
        elif (method == "Runtime.consoleAPICalled"
              and params["type"] in ("error", "warning", "assert")):
            values = [str(arg.get("value", arg.get("description"))) for arg in params["args"]]
            self.errors.append(" ".join(values))


def _exception(details: dict) -> str:
    return details.get("exception", {}).get("description") or details["text"]
