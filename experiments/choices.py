"""Choices among named options, each of which declares the flags that it reads.

An option receives the flags it declares and no others, so a flag that was given although nothing
reads it can be found, and refused with the names of the options that would read it.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Option(NamedTuple):
    """One value of a choice.

    Attributes:
        make: Called with the declared flags that have a value.
        arguments: `{flag: argument of make}`.
        beside: Flags that come into play with this option though `make` does not receive them;
            the flag of another choice brings with it what the chosen option there reads.
        required: Flags that must have a value.
    """

    make: Callable
    arguments: Mapping = {}
    beside: tuple = ()
    required: tuple = ()


class Choice(NamedTuple):
    """A flag that selects one of several options.

    Attributes:
        flag: Name of the flag.
        options: `{value of the flag: Option}`.
        arguments: As in `Option`, for every option.
        beside: As in `Option`, for every option.
        required: As in `Option`, for every option.
    """

    flag: str
    options: Mapping
    arguments: Mapping = {}
    beside: tuple = ()
    required: tuple = ()

    def build(self, values) -> Any:
        """What the chosen option makes of the flags."""
        option = self.options[values[self.flag].value]
        arguments = {**self.arguments, **option.arguments}
        given = {name: values[flag].value for flag, name in arguments.items()}
        return option.make(**{name: value for name, value in given.items() if value is not None})

    def reads(self, name) -> set:
        """Names of the flags that the option `name` reads."""
        option = self.options[name]
        return {*self.arguments, *self.beside, *option.arguments, *option.beside}


def check_flags(values, choices, always, exclusive, needs):
    """Refuses flags that are missing, contradict one another, or would change nothing.

    Args:
        values: Parsed `absl.flags.FlagValues`.
        choices: All `Choice`s.
        always: Flags that are read in any case.
        exclusive: Groups of flags of which one may be given.
        needs: `{flag: flag that it is read with}`.

    Raises:
        ValueError: The first flag that is wrong, and what to do.
    """
    given = {name for name in values if values[name].present}
    table = {choice.flag: choice for choice in choices}
    for group in exclusive:
        both = [name for name in group if name in given]
        if len(both) > 1:
            received = " ".join(f"--{name}={values[name].value}" for name in both)
            raise ValueError(f"Expected one of {_names(group)}. Received: {received}")
    used = _in_play(values, table, always)
    for name in sorted(given - used):
        raise ValueError(
            f"Expected only flags that the experiment uses. Received: --{name}="
            f"{values[name].value}, which nothing reads here. It is read with "
            f"{_readers(name, table, used)}."
        )
    for name, other in needs.items():
        if name in given and values[other].value is None:
            raise ValueError(
                f"Expected --{other} with --{name}. Received: --{name}={values[name].value} alone."
            )
    for choice in choices:
        if choice.flag in used:
            _check_required(choice, values)


def _in_play(values, table, always):
    """The flags that something reads, given the options chosen."""
    used, waiting = set(), list(always)
    while waiting:
        name = waiting.pop()
        if name in used:
            continue
        used.add(name)
        if name in table and values[name].value is not None:
            waiting.extend(table[name].reads(values[name].value))
    return used


def _readers(flag, table, used):
    """The options that read a flag, in words."""
    found = []
    for choice in table.values():
        names = [str(name) for name in choice.options if flag in choice.reads(name)]
        if not names:
            continue
        everywhere = len(names) == len(choice.options)
        text = f"--{choice.flag}" if everywhere else f"--{choice.flag}={'|'.join(names)}"
        if choice.flag not in used:
            text += f" (itself read with {_readers(choice.flag, table, used)})"
        found.append(text)
    return " or ".join(found)


def _check_required(choice, values):
    chosen = values[choice.flag].value
    if chosen is None:
        raise ValueError(
            f"Expected --{choice.flag}, one of: {', '.join(choice.options)}. Received: no "
            f"--{choice.flag}."
        )
    for name in (*choice.required, *choice.options[chosen].required):
        if values[name].value is None:
            raise ValueError(
                f"Expected --{name} with --{choice.flag}={chosen}. Received: no --{name}. Give it: "
                f"{values[name].help}"
            )


def _names(flags):
    return " and ".join(f"--{name}" for name in flags)
