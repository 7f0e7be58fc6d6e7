"""Start and end of every command of this package: flags, Ctrl-C, exit statuses.

Exit status: 0 done; 1 failed; 2 wrong use; 75 the same command resumes the job; 130 Ctrl-C. A
command that fails prints the reason in one line on stderr; `--verbosity=1` shows the traceback.

This module imports the standard library alone, so that it handles Ctrl-C during slow imports.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable, Iterator
from typing import NoReturn

FAILED, WRONG_USE, START_AGAIN, INTERRUPTED = 1, 2, 75, 130

# Errors in the user's input. Every other error is a failure.
_WRONG_USE_ERRORS = (
    ValueError,
    ImportError,
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
)
# Errors whose messages are written for users; other messages are prefixed with the error's type.
_EXPLAINED_ERRORS = (ValueError, ImportError, OSError, RuntimeError)
_LONGEST_LINE = 2000  # characters; messages of a device that is out of memory are longer

# Ctrl-C first raises an exception, so that files are closed and workers ended. If Python cannot
# raise it, as within a compiler, the process ends after this time.
_GRACE_SECONDS = 2.0


def run(
    main: Callable[[list[str]], int | None],
    parse: Callable[[list[str]], list[str]] | None = None,
) -> NoReturn:
    """Runs a command: parses its flags, calls `main`, and ends the process.

    Args:
      main: takes the program's name in a list; returns the exit status, None for 0. `ending` gives
        the status and the message of its exceptions.
      parse: parses flags; None for `parse_flags`.
    """
    _interrupts.take()
    try:
        from absl import app

        logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it raises what it logs

        def work(argv: list[str]) -> int | None:
            if len(argv) > 1:
                raise ValueError(
                    f"unexpected argument {argv[1]!r}; options start with --, and commands are "
                    "given as `sr3 COMMAND` or --mode=COMMAND"
                )
            _interrupts.at_once = False
            return main(argv)

        app.run(work, flags_parser=parse or parse_flags)
    except KeyboardInterrupt:
        leave(INTERRUPTED, _Interrupts.LINE)
    except Exception as error:
        leave(*ending(error))
    finally:
        _interrupts.at_once = True  # no traceback from the shutdown of the interpreter


def take_interrupts() -> None:
    """Makes Ctrl-C end the process with one line and status 130, also during imports.

    Does nothing after the first call, or outside the main thread.
    """
    _interrupts.take()


@contextlib.contextmanager
def nothing_to_lose() -> Iterator[None]:
    """Lets Ctrl-C end the process at once, for imports, which may swallow exceptions."""
    before, _interrupts.at_once = _interrupts.at_once, True
    yield
    _interrupts.at_once = before


def leave(status: int, message: str = "") -> NoReturn:
    """Raises SystemExit, after a line on stderr."""
    say(message)
    sys.exit(status)


def show(text: str) -> NoReturn:
    """Prints a text and ends the process with status 0, also where `head` has read enough."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(0)


def say(message: str) -> None:
    """Prints a line, if any, to stderr; ignores errors of writing."""
    if message:
        with contextlib.suppress(OSError):
            print(message, file=sys.stderr, flush=True)


def ending(error: Exception) -> tuple[int, str]:
    """Returns exit status and message for an exception; logs the traceback as debug."""
    from absl import flags
    from absl.logging import debug

    debug("traceback", exc_info=error)
    if isinstance(error, flags.Error):
        error = ValueError(str(error))
    status = WRONG_USE if isinstance(error, _WRONG_USE_ERRORS) else FAILED
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError):
        text = f"out of memory: {text}" if text else "out of memory"
    elif not (isinstance(error, _EXPLAINED_ERRORS) and text):
        text = f"{type(error).__name__}: {text} (--verbosity=1 shows where)"
    if len(text) > _LONGEST_LINE:
        text = f"{text[:_LONGEST_LINE]} ... (--verbosity=1 shows all)"
    return status, f"error: {text}"


def asks_for_help(argv: list[str]) -> bool:
    """Returns whether a command line has a flag for help."""
    return any(arg in ("-h", "-help", "--help", "--helpfull") for arg in argv[1:])


def parse_flags(argv: list[str]) -> list[str]:
    """Parses flags; returns the arguments that are none.

    Raises:
      flags.Error: a flag is not defined, or its value is invalid.
      ValueError: the config or one of its keys cannot be read; names the nearest key.
    """
    from absl import flags

    # To a tool that reads other programs' files, --config is one of theirs, a text.
    has_config = "config" in flags.FLAGS and flags.FLAGS["config"].flag_type() != "string"
    if has_config:
        # ml_collections looks for the flags of keys in `sys.argv`.
        from sr3_jax.config import flag_values

        sys.argv[1:] = argv[1:] = _with_config_file(argv[1:])
        flag_values.check(argv[1:])
    try:
        rest = flags.FLAGS(argv)
    except SystemExit:
        sys.exit(0)  # for --help, where absl exits with 1
    except flags.Error as error:
        if "Traceback (most recent call last)" in str(error):  # of a config file
            raise ValueError(_config_message(error)) from error
        raise
    except Exception as error:
        raise ValueError(_config_message(error)) from error
    try:
        # A config file that cannot be loaded raises when its value is first used.
        if has_config and flags.FLAGS.config is not None:
            flags.FLAGS.config.to_dict()
    except Exception as error:
        raise ValueError(_config_message(error)) from error
    return rest


def _with_config_file(arguments: list[str]) -> list[str]:
    """Replaces the name of a config, as in `--config=quickstart`, by its file; and older keys."""
    from sr3_jax.config import locating, migration

    changed = [migration.migrate_flag(argument) for argument in arguments]
    for i, argument in enumerate(arguments):
        flag, separator, given = argument.partition("=")
        if flag not in ("--config", "-config"):
            continue
        if not separator and i + 1 < len(arguments):
            flag, given, i = "", arguments[i + 1], i + 1
        if given:
            name, *variant = given.split(":", 1)
            found = ":".join([str(locating.locate(name)), *variant])
            changed[i] = f"{flag}={found}" if flag else found
    return changed


def _config_message(error: Exception) -> str:
    """Returns a message for an error of reading a config file or its flags."""
    # Errors of ml_collections quote their causes.
    message = str(error.args[0] if error.args else error).replace("\\n", " ").replace("\\'", "'")
    message = " ".join(message.split())
    for introduction in ("earlier failure to load: ", "Attempted [Relative path]: "):
        message = message.rpartition(introduction)[2]
    if "Traceback (most recent call last)" in message:  # of a config file, as a text
        last = re.split(r"\b\w+Error: ", message)[-1]
        return f"--config: {last}"
    if locked := re.match(r'Key "(\w+)" does not exist', message):
        from sr3_jax.config import migration

        now = {old.rpartition(".")[2]: new for old, new in migration.KEYS.items()}.get(locked[1])
        return f"--config has no key {locked[1]!r}" + (f"; it is now {now}" if now else "")
    if "has no attribute 'get_config'" in message:
        return "--config: the file has no function get_config(); see configs/ for examples"
    if isinstance(error, (KeyError, AttributeError)):
        key, hint, nearest = message.partition("Did you mean")
        key = key.strip("'\" ")
        return f"--config has no key {key!r}. {hint}{nearest}".rstrip("' ")
    if isinstance(error, (TypeError, ValueError, OSError)):
        return f"--config: {message}"
    # A fault in the user's file.
    where = traceback.extract_tb(error.__traceback__)[-1]
    file, line = where.filename, where.lineno
    if isinstance(error, SyntaxError) and error.filename:
        file, line = error.filename, error.lineno
    return f"--config: {type(error).__name__}: {message} ({file}, line {line})"


class _Interrupts:
    """Handling of Ctrl-C.

    Python runs signal handlers in the main thread between two instructions, which may be minutes
    apart while a program compiles. So a second thread receives the signal, too.
    """

    LINE = (
        "interrupted; all files that are there are whole, and the same command may be given again"
    )

    def __init__(self) -> None:
        self.at_once = True
        self._is_taken = False
        self._raised = threading.Event()

    def take(self) -> None:
        if self._is_taken or threading.current_thread() is not threading.main_thread():
            return
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            return  # nohup or a background job
        self._is_taken = True
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGINT, self._handle)
        threading.Thread(target=self._watch, args=(reader,), daemon=True).start()

    def _handle(self, number: int, _: types.FrameType | None) -> None:
        """Raises KeyboardInterrupt; `parallel.StopSignal` replaces this handler for a time."""
        if self.at_once:
            time.sleep(_GRACE_SECONDS)  # the other thread ends the process
        self._raised.set()
        raise KeyboardInterrupt

    def _watch(self, reader: int) -> None:
        count = 0
        while number := os.read(reader, 1):
            if number[0] != signal.SIGINT:
                continue
            count += 1
            if self.at_once or count > 2:
                self._end()
            if count == 2:
                time.sleep(_GRACE_SECONDS)
                self._end()
            # Another handler, if set, has all the time it needs.
            is_ours = signal.getsignal(signal.SIGINT) == self._handle
            if is_ours and not self._raised.wait(_GRACE_SECONDS):
                self._end()

    def _end(self) -> NoReturn:
        os.write(2, f"{self.LINE}\n".encode())
        os._exit(INTERRUPTED)


_interrupts = _Interrupts()
