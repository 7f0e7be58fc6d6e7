"""Exit status and message of commands, for any error and Ctrl-C at any time.

Small programs around `sr3_jax.command_line`, which start in a moment.
"""

import pathlib
import signal
import subprocess
import sys
import textwrap

import pytest
import small_run

_PROGRAM = """
import ctypes, errno, os, signal, sys, time
from sr3_jax import command_line
command_line.take_interrupts()
def main(argv):
{body}
{before}
command_line.run(main)
"""


def start(body: str, before: str = "", *flags: str) -> subprocess.Popen:
    program = _PROGRAM.format(body=textwrap.indent(body, "    "), before=before)
    command = [sys.executable, "-c", program, *flags]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=small_run.ROOT, text=True, **pipes)


@pytest.mark.parametrize(
    ("body", "status", "line"),
    [
        ("raise ValueError('--size=0; give\\nat least 1')", 2, "error: --size=0; give at least 1"),
        ("open('/nonexistent/a')", 2, "No such file or directory: '/nonexistent/a'"),
        ("raise RuntimeError('diverged')", 1, "error: diverged"),
        ("raise MemoryError", 1, "error: out of memory"),
        ("return {}['key']", 1, "error: KeyError: 'key' (--verbosity=1 shows where)"),
        ("raise OSError(errno.EROFS, 'Read-only file system', 'f')", 1, "file system: 'f'"),
        ("open('/dev/full', 'wb', 0).write(b'a')", 1, "No space left on device"),
        ("return 75", 75, None),
        ("pass", 0, None),
    ],
)
def test_status_and_line(body, status, line):
    process = start(body)
    said = process.communicate()[1]
    assert process.returncode == status, said
    if line is None:
        assert not said
    else:
        (error,) = said.splitlines()
        assert error.startswith("error: ") and line in error


def test_flags():
    for flags, status, line in (
        (["--nosuch=1"], 2, "error: Unknown command line flag 'nosuch'"),
        (
            ["stray"],
            2,
            "error: unexpected argument 'stray'; options start with --, and commands are given as "
            "`sr3 COMMAND` or --mode=COMMAND",
        ),
        (["--help"], 0, None),
    ):
        process = start("pass", "", *flags)
        said = process.communicate()[1].splitlines()
        assert process.returncode == status and said == ([] if line is None else [line])
    process = start("raise ValueError('wrong')", "", "--verbosity=1")
    assert "Traceback" in process.communicate()[1]


# The body of a program, code before it, the number of Ctrl-Cs, and the output after the first.
_READY = "print('ready', flush=True)"
_WAIT = f"{_READY}; time.sleep(60)"
_CASES = {
    "while it imports": ("", f"{_WAIT}", 1, ""),
    # What is imported may take any exception for its own.
    "while what it imports hides all errors": (
        "",
        f"try: {_WAIT}\nexcept BaseException: pass",
        1,
        "",
    ),
    "while it works": (
        f"try: {_WAIT}\nfinally: print('cleaned')",
        "",
        1,
        "cleaned",
    ),
    # As within a compiler: the main thread sees no signal.
    "while it is in another language": (
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})\n"
        f"{_READY}; ctypes.CDLL(None).sleep(60)",
        "",
        1,
        "",
    ),
    "again, while it cleans up": (
        f"try: {_WAIT}\nfinally: print('cleaning', flush=True); time.sleep(60)",
        "",
        2,
        "cleaning",
    ),
    "while it ends": (
        f"import atexit\natexit.register(lambda: exec({_WAIT!r}))",
        "",
        1,
        "",
    ),
}


@pytest.mark.parametrize("case", _CASES)
def test_ctrl_c(case):
    body, before, times, printed = _CASES[case]
    process = start(body or "pass", before)
    assert process.stdout.readline() == "ready\n"
    for count in range(times):
        process.send_signal(signal.SIGINT)
        if count + 1 < times:
            assert process.stdout.readline() == f"{printed}\n"
            printed = ""
    out, said = process.communicate(timeout=30)
    assert process.returncode == 130
    (line,) = said.splitlines()
    assert line.startswith("interrupted; ")
    assert out.strip() == printed


def test_sigterm_ends_what_has_nothing_to_save_as_any_program():
    process = start("pass", f"{_WAIT}")
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    assert process.communicate()[1] == "" and process.returncode == -signal.SIGTERM


def test_every_tool_ends_in_this_way():
    """Exceptions are tools that run in an interpreter without this package."""
    tools = pathlib.Path(small_run.ROOT, "sr3_jax", "tools")
    alone = {"export_example.py", "benchmark/diffusers_peer.py"}
    commands = {
        str(p.relative_to(tools)): text
        for p in tools.rglob("*.py")
        if '__name__ == "__main__"' in (text := p.read_text())
    }
    assert len(commands) > len(alone)
    for name in commands.keys() - alone:
        assert "    command_line.run(main)\n" in commands[name], name


def test_upscaling_starts_without_what_it_does_not_use():
    """Each of these takes from half a second to ten at every start."""
    slow = {"tensorflow", "torch", "matplotlib.pyplot", "scipy.signal", "scipy.stats"}
    program = f"import sys, sr3_jax.commands.upscale; print(*({slow} & sys.modules.keys()))"
    command = [sys.executable, "-c", program]
    found = subprocess.run(command, cwd=small_run.ROOT, text=True, capture_output=True, check=True)
    assert found.stdout.split() == []
