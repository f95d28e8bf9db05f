"""A script with which shells complete commands and options."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Mapping, Sequence

__all__ = ["options", "script", "subparsers"]

_SCRIPT = """{function}() {{
    local words cur=${{COMP_WORDS[COMP_CWORD]}}
    case ${{COMP_WORDS[1]}} in
{cases}
    esac
    (( COMP_CWORD == 1 )) && words="{commands} --help --version"
    COMPREPLY=($(compgen -W "$words" -- "$cur"))
}}
[[ -n $ZSH_VERSION ]] && autoload -Uz bashcompinit && bashcompinit
complete -o default -F {function} {program}"""


def subparsers(parser: ArgumentParser) -> dict[str, ArgumentParser]:
    """Return the parsers of subcommands by name."""
    found = (action.choices for action in parser._actions if isinstance(action.choices, Mapping))
    return {name: one for choices in found for name, one in choices.items()}


def options(parser: ArgumentParser) -> list[str]:
    """Return the long options of a parser."""
    hidden = ("--print_shtab",)  # of jsonargparse, which only says that it is gone
    found = (option for action in parser._actions for option in action.option_strings)
    return [option for option in found if option.startswith("--") and option[-1] != "+" and option not in hidden]


def script(program: str, known: Mapping[str, Sequence[str]]) -> str:
    """Return the script: the first word is one of the commands, others are options of it, or files.

    Example:
        >>> print(script("paint", {"draw": ["--ink"]}).splitlines()[3])
                draw) words="--ink" ;;
    """
    cases = "\n".join(f'        {name}) words="{" ".join(words)}" ;;' for name, words in known.items())
    function = f"_{program.replace('-', '_')}"
    return _SCRIPT.format(function=function, program=program, cases=cases, commands=" ".join(known))
