"""Drive a headless Chromium by its debugging pipe, with the standard library alone."""

import itertools
import json
import os
import shutil
import subprocess

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_FLAGS = ("--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
          "--disable-component-update --disable-sync --mute-audio --remote-debugging-pipe").split()


class Page:
    """One page. What it complained of is in `complaints`."""

    def __init__(self, profile, url, width=1100, height=1000):
        from_us, to_browser = os.pipe()
        from_browser, to_us = os.pipe()

        def connect():
            ends = [os.dup(end) for end in (from_us, to_us)]      # so that neither is in the other's way
            os.dup2(ends[0], 3)
            os.dup2(ends[1], 4)

        self._process = subprocess.Popen(
            [PROGRAM, *_FLAGS, f"--user-data-dir={profile}", "about:blank"], preexec_fn=connect, close_fds=False,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(from_us)
        os.close(to_us)
        self._write, self._read = os.fdopen(to_browser, "wb", 0), os.fdopen(from_browser, "rb", 0)
        self._numbers, self._rest, self.complaints, self._session = itertools.count(1), b"", [], None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Runtime", "Log", "Page"):
            self.call(f"{domain}.enable")
        self.resize(width, height)
        self.call("Page.navigate", url=url)
        self.wait_for("document.readyState === 'complete'")

    def resize(self, width, height):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def call(self, method, **params):
        """Give a command of the DevTools protocol, and return its result."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._write.write(json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != number:
            self._note(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def _receive(self):
        while b"\0" not in self._rest:
            data = self._read.read(1 << 16)
            if not data:
                raise RuntimeError("the browser has gone")
            self._rest += data
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def _note(self, event):
        method, params = event.get("method"), event.get("params", {})
        is_said = method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning")
        if is_said or method in ("Runtime.exceptionThrown", "Log.entryAdded"):
            self.complaints.append(params)

    def run(self, script):
        """The value of a JavaScript expression, a promise's when it has come; the user may have made it."""
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True,
                          userGesture=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"])
        return found["result"].get("value")

    def wait_for(self, condition, seconds=20):
        """Wait until a JavaScript expression holds."""
        held = self.run(f"""new Promise(done => {{
            const end = Date.now() + {1000 * seconds};
            (function look() {{ const held = {condition}; if (held || Date.now() > end) done(!!held);
                                else setTimeout(look, 20); }})() }})""")
        assert held, condition

    def press(self, key, text=""):
        """Press a key as a user does."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=_VIRTUAL.get(key, 0),
                      **({"text": text} if text and kind == "keyDown" else {}))

    def close(self):
        self._process.kill()
        self._process.wait()
        self._write.close()
        self._read.close()


_VIRTUAL = {"Tab": 9, "Enter": 13, " ": 32, "ArrowLeft": 37, "ArrowRight": 39}
