"""A command that runs a script: whose option is whose on `submit train.py --lr 0.1 --watch`."""

from typing import Any

import typer.core

_SCRIPT = "epochcast.script"


class ScriptCommand(typer.core.TyperCommand):
    """The command's own options are taken wherever they stand; the script, and what the command doesn't know after
    it, is the script's. After `--` everything is."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        own, ctx.meta[_SCRIPT] = self._split(list(args))
        return list(super().parse_args(ctx, own))

    def _split(self, args: list[str]) -> tuple[list[str], list[str]]:
        takes_value = self._options()
        own: list[str] = []
        script: list[str] = []
        while args:
            word = args.pop(0)
            name, equals, _ = word.partition("=")
            if word == "--":
                return own, script + args
            if word in takes_value:
                own.append(word)
                if takes_value[word] and args:
                    own.append(args.pop(0))
            elif (equals and name.startswith("--") and name in takes_value) or (not script and word.startswith("-")):
                own.append(word)  # what is wrong before the script, the parser says
            else:
                script.append(word)
        return own, script

    def _options(self) -> dict[str, bool]:
        """Every spelling of an option, and whether a value follows it."""
        found = {"--help": False, "-h": False}
        for parameter in self.params:
            flag = bool(getattr(parameter, "is_flag", False))
            found |= dict.fromkeys((*parameter.opts, *parameter.secondary_opts), not flag)
        return found


def script_of(context: typer.Context) -> list[str]:
    """The script and its arguments; empty where none was named."""
    words: list[str] = context.meta[_SCRIPT]
    return words
