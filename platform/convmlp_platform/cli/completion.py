"""`convmlp completion`: a script that lets the TAB key complete commands, options, names of runs and of files.

The script holds the words themselves, so completing starts no Python; it is made anew whenever a shell starts.
"""

from __future__ import annotations

import argparse
from typing import Any

from convmlp_platform.cli.common import RUN_HELP, all_commands, arguments_of

_BASH = """\
# convmlp's words for the TAB key: eval "$(convmlp completion bash)", or "$(convmlp completion zsh)", in the shell's
# start file.
_convmlp() {
    local word=${COMP_WORDS[COMP_CWORD]} key= one number
    COMPREPLY=()
    for ((number = 1; number < COMP_CWORD; number++)); do
        one=${COMP_WORDS[number]}
        case " $(_convmlp_words "$key") " in *" $one "*) [[ $one == -* ]] || key="${key:+$key }$one" ;; esac
    done
    COMPREPLY=($(compgen -W "$(_convmlp_words "$key")" -- "$word"))
    if [[ $word != -* ]]; then
        case " $key " in
            %(runs)s)
                COMPREPLY+=($(compgen -W "$(_convmlp_runs)" -- "$word")) ;;
        esac
        COMPREPLY+=($(compgen -f -- "$word"))
    fi
}
_convmlp_runs() {
    local folder=${CONVMLP_ROOT:-.}/runs one
    for one in "$folder"/*/ "$folder"/*/*/; do
        [[ -e $one/run.json ]] && one=${one#"$folder"/} && printf '%%s ' "${one%%/}"
    done
}
_convmlp_words() {
    case "$1" in
%(words)s
    esac
}
"""
_END = {
    "bash": "complete -o filenames -F _convmlp convmlp\n",
    "zsh": "autoload -U +X bashcompinit && bashcompinit\ncomplete -o filenames -F _convmlp convmlp\n",
}


def add_command(commands: Any, program: argparse.ArgumentParser) -> None:
    """Add `completion` to the parser's commands.

    Args:
        program: the parser of all commands.
    """
    parser = commands.add_parser(
        "completion",
        help="print a script for the TAB key: commands, options, runs",
        description='In the shell\'s start file: eval "$(convmlp completion bash)", or zsh in place of bash.',
    )
    parser.add_argument("shell", choices=sorted(_END))
    parser.set_defaults(call=lambda arguments: _print(arguments.shell, program))


def _print(shell: str, program: argparse.ArgumentParser) -> int:
    print(script(shell, program), end="")
    return 0


def script(shell: str, program: argparse.ArgumentParser) -> str:
    """The script for `bash` or `zsh`."""
    every = [((), program), *all_commands(program)]
    words = [f"        '{' '.join(key)}') echo '{' '.join(_words(parser))}' ;;" for key, parser in every]
    runs = "|".join(f"*' {' '.join(key)} '*" for key, parser in every if _takes_a_run(parser))
    return _BASH % {"words": "\n".join(words), "runs": runs} + _END[shell]


def _words(parser: argparse.ArgumentParser) -> list[str]:
    """The names of commands, or choices, and options that a parser takes."""
    found: list[str] = []
    for action in arguments_of(parser):
        found += [name for name in action.option_strings if name.startswith("--")]
        if not action.option_strings and action.choices:
            found += map(str, action.choices)
    return found


def _takes_a_run(parser: argparse.ArgumentParser) -> bool:
    return any(str(action.help or "").startswith(RUN_HELP) for action in arguments_of(parser))
