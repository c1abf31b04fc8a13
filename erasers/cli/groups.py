"""Options that belong together: one dataclass for each group, taken by every command that has them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from functools import update_wrapper
from inspect import Parameter, Signature, signature
from typing import Any, get_type_hints

import typer


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """The command for the argument parser: a parameter that is a group becomes the options of the group.

    Args:
        command: Its parameters are options, arguments, the context of the parser, or groups: dataclasses with a
            default for every option.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}

    def call(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{option.name: given.pop(option.name) for option in fields(group)})
        command(**given)

    parameters: list[Parameter] = []
    for parameter in signature(command).parameters.values():
        name = parameter.name
        parameters += _options(groups[name]) if name in groups else [parameter.replace(annotation=hints[name])]
    parameters = [parameter.replace(kind=Parameter.KEYWORD_ONLY) for parameter in parameters]
    update_wrapper(call, command)
    call.__dict__["__signature__"] = Signature(parameters)
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call


def refuse_idle(context: typer.Context, options: Iterable[str], reason: str) -> None:
    """Refuse options that would do nothing.

    Args:
        context: Of the parser.
        options: Such as `--samples`.
        reason: What they are for, and what to add.

    Raises:
        ValueError: One was given.
    """
    given = given_options(context)
    for option in options:
        if option in given:
            raise ValueError(f"{option} is {reason}, or leave it out")


def given_options(context: typer.Context) -> list[str]:
    """The options that stand on the command line, in their order in the help."""
    return [
        option.opts[0]
        for option in context.command.params
        if option.name and getattr(context.get_parameter_source(option.name), "name", "DEFAULT") == "COMMANDLINE"
    ]


def _options(group: Any) -> list[Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        Parameter(option.name, Parameter.KEYWORD_ONLY, default=option.default, annotation=hints[option.name])
        for option in fields(group)
    ]
