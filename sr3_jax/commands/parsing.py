"""Parses a command line: first which command it is, then that command's flags alone."""

from __future__ import annotations

from absl import flags

import sr3_jax
from sr3_jax import command_line, commands
from sr3_jax.commands import help as help_texts
from sr3_jax.commands import shared


def parse(argv: list[str]) -> list[str]:
    """Defines and parses the flags of the command that `argv` names; the parser of `absl.app.run`.

    --help and --version end the process.

    Raises:
      ValueError: a flag is unknown, or of another command, or cannot be read.
    """
    if "--version" in argv[1:]:
        command_line.show(f"sr3_jax {sr3_jax.__version__}")
    first = flags.FlagValues()
    _define_mode(first)
    first.set_gnu_getopt()  # reads on after the value of a flag that it does not know
    try:
        first(argv, known_only=True)
    except flags.Error as error:
        raise ValueError(str(error)) from error
    if command_line.asks_for_help(argv):
        command_line.show(_help(first))
    _define_mode(flags.FLAGS)
    _define(first.mode, flags.FLAGS)
    if flag := getattr(commands.module(first.mode), "CONFIG_OF_RUN", ""):
        argv = _with_config_of_run(argv, flag)
    try:
        return command_line.parse_flags(argv)
    except flags.UnrecognizedFlagError as error:
        raise ValueError(_whose(error, first.mode)) from error


def _with_config_of_run(argv: list[str], flag: str) -> list[str]:
    """Adds --config of the run that `flag` names if options are given and no --config."""
    options = [argument for argument in argv if argument.startswith("--config.")]
    if not options or any(argument.split("=")[0] == "--config" for argument in argv):
        return argv
    flags.DEFINE_string(flag, None, "", flag_values=(values := flags.FlagValues()))
    values.set_gnu_getopt()
    values(argv, known_only=True)
    if not values[flag].value:
        return argv
    from sr3_jax.config import of_run

    try:
        of_run.get_config(values[flag].value)
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"--{flag}={values[flag].value}: {error}") from error
    return [argv[0], f"--config={of_run.__file__}:{values[flag].value}", *argv[1:]]


def _define_mode(values: flags.FlagValues) -> None:
    flags.DEFINE_enum(
        "mode", "train", commands.NAMES, "What to do: `sr3 MODE` for short.", flag_values=values
    )


def _define(name: str, values: flags.FlagValues) -> None:
    """Defines the flags of a command."""
    commands.module(name).define_flags(values)
    shared.define_processes(values)


def _help(first: flags.FlagValues) -> str:
    """Returns the help of the command that is named, else that of all."""
    if not first["mode"].present:
        return help_texts.of_all()
    _define(first.mode, values := flags.FlagValues())
    return help_texts.of_command(first.mode, values)


def _whose(error: flags.UnrecognizedFlagError, mode: str) -> str:
    """Returns the message for a flag that the command lacks; it may be one of another command."""
    owners = []
    for name in commands.NAMES:
        _define(name, values := flags.FlagValues())
        if error.flagname in values:
            owners.append(name)
    if not owners:
        return str(error)
    return (
        f"--{error.flagname} is of --mode={' and '.join(owners)}; --mode={mode} has no use for it"
    )
