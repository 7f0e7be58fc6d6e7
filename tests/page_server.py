"""The commands that serve pages, started as users start them; and what tests do at a page."""

import os
import signal
import subprocess
import sys
import time

import small_run


class Server:
    """A command in a process of its own.

    Attributes:
      address: of the page.
      text: what the command printed until then.
    """

    def __init__(self, mode, log, *flags, **environment):
        command = [sys.executable, "-m", "sr3_jax.main", f"--mode={mode}", *flags]
        self._process = subprocess.Popen(
            command,
            env=dict(os.environ, **environment),
            cwd=small_run.ROOT,
            stdout=open(log, "w"),
            stderr=subprocess.STDOUT,
        )

        def printed():
            self.text = log.read_text()
            assert self._process.poll() is None, self.text
            return "Ctrl-C ends it" in self.text

        until(printed, "the page")
        self.address = self.text.split("The page: ")[1].split()[0]
        self.port = self.address.rstrip("/").rpartition(":")[2]

    def end(self, how=signal.SIGINT):
        assert self._process.poll() is None, "the server ended"
        self._process.send_signal(how)
        self._process.wait(timeout=60)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._process.poll() is None:
            self.end()


def until(condition, what, seconds=60):
    """Waits until a condition holds; returns what it gives."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError(f"{what} did not come in {seconds} s")
