"""The options of ``%voidbox`` and ``%%voidbox``: one parser per subcommand, errors of one sentence."""

from __future__ import annotations

import argparse
import difflib
import shlex
from collections.abc import Callable
from typing import Any, NoReturn, get_args

from voidbox_lab.errors import UserError
from voidbox_lab.spec import MIN_MEMORY_MB, Budget, Network, OnFailure, Retry, parse_failure


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises `UserError` and never prints or exits."""

    def __init__(self, prog: str, description: str, *, rest: bool = False) -> None:
        super().__init__(prog=prog, description=description, add_help=False, allow_abbrev=False)
        self.add_argument("-h", "--help", action="store_true", help="show this text")

    def error(self, message: str) -> NoReturn:
        """As argparse words it, as one sentence."""
        raise UserError(f"{self.prog}: {message[:1].lower()}{message[1:].rstrip('.')}; see '{self.prog} --help'.")

    def read(self, line: str) -> argparse.Namespace:
        """The options in `line`, split as a shell would.

        Raises:
            UserError: an unknown or ill-formed option, or a quotation mark without its partner.
        """
        try:
            words = shlex.split(line)
        except ValueError as e:
            raise UserError(f'{self.prog}: a quotation mark has no partner; quote values like "this one".') from e
        self._check_options(words)
        if "-h" in words or "--help" in words:
            return argparse.Namespace(help=True)
        return self.parse_intermixed_args(words)

    @property
    def options(self) -> dict[str, argparse.Action]:
        """Long option strings and their actions."""
        return {o: a for a in self._actions for o in a.option_strings if o.startswith("--")}

    def _check_options(self, words: list[str]) -> None:
        known = self.options
        for word in words:
            name = word.split("=", 1)[0]
            if name == "--":
                return
            if name.startswith("--") and name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
                hint = f"did you mean {near[0]!r}?" if near else f"the options are {', '.join(known)}."
                raise UserError(f"{self.prog} has no option {name!r}; {hint}")


def _whole(low: int, high: int, unit: str, why: str = "") -> Callable[[str], int]:
    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of {unit}") from None
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{value} is not between {low} and {high} {unit}{why}")
        return value

    return read


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds") from None
    if not 0 < value <= 86400:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 86400 seconds")
    return value


def _budget(text: str) -> Budget:
    try:
        return Budget.parse(text)
    except UserError as e:
        raise argparse.ArgumentTypeError(e.message) from e


def _failure(text: str) -> tuple[OnFailure, Retry | None]:
    try:
        return parse_failure(text)
    except UserError as e:
        raise argparse.ArgumentTypeError(e.message) from e


RUN = "id of the run, or $VARIABLE"
MEMORY = _whole(MIN_MEMORY_MB, 1 << 20, "MB", "; less than that does not hold the guest's kernel and agent")


def skill_parser() -> Parser:
    """``%%voidbox skill`` and ``%voidbox skill``."""
    p = Parser(
        "%%voidbox skill",
        "Declare a skill; the cell's text is its SKILL.md, front matter optional. Or, as a line, one of another "
        "kind: --mcp, --cli, --agent, --oci, --remote, --file.",
    )
    p.add_argument("name", nargs="?", help="name; may stand in the front matter or file instead")
    p.add_argument("--description", help="one line for the agent: when to use the skill")
    kind = p.add_mutually_exclusive_group()
    kind.add_argument("--mcp", metavar="COMMAND", help="an MCP server: the command that starts it in the box")
    kind.add_argument(
        "--cli", action="append", metavar="PACKAGE",
        help="command-line programs: the package that has them, as in deb:jq, pypi:httpie; repeat for more. A "
        "cell's text says how to use them",
    )  # fmt: skip
    kind.add_argument("--agent", action="store_true", help="the agent program of this name drives the stage")
    kind.add_argument("--oci", metavar="IMAGE", help="files of an OCI image, read-only in the box")
    kind.add_argument(
        "--remote", metavar="WHERE",
        help="owner/repo/path@REVISION on GitHub, git+URL@REVISION, or the URL of a .tar.gz or .zip",
    )  # fmt: skip
    kind.add_argument(
        "--file", metavar="PATH", help="a SKILL.md file, or a directory with one and what goes with it"
    )
    p.add_argument(
        "--package",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="of --mcp: what it needs; repeat for more",
    )
    p.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of --mcp: its environment; repeat for more",
    )
    p.add_argument(
        "--tool", action="append", metavar="NAME", help="of --mcp: a tool to offer; repeat (default: all)"
    )
    p.add_argument(
        "--program", action="append", default=[], metavar="NAME",
        help="of --cli: a program, if not named as the skill; repeat for more",
    )  # fmt: skip
    p.add_argument("--path", help="of --oci: where in the box; of --remote: the skill's directory there")
    p.add_argument("--revision", metavar="REV", help="of --remote: a commit, tag or branch, or sha256:HEX")
    return p


def stage_parser() -> Parser:
    """``%%voidbox stage``."""
    p = Parser("%%voidbox stage", "Declare a stage: an agent in a box of its own; the cell's text is its prompt.")
    p.add_argument("name", help="name of the stage")
    p.add_argument(
        "--model",
        required=True,
        help="PROVIDER:NAME, e.g. anthropic:claude-sonnet-4-5, scripted:quickstart; or $VARIABLE",
    )
    p.add_argument(
        "--skill", action="append", default=[], metavar="NAME", help="a declared skill; repeat for more"
    )
    p.add_argument("--agent", default="lab-agent", metavar="NAME", help="the agent program (default: lab-agent)")
    p.add_argument("--memory", type=MEMORY, default=512, metavar="MB", help="the box's memory (default: 512)")
    p.add_argument("--vcpus", type=_whole(1, 64, "vCPUs"), default=1, metavar="N", help="its CPUs (default: 1)")
    p.add_argument(
        "--timeout", type=_seconds, default=300, metavar="S", help="seconds for the agent (default: 300)"
    )
    p.add_argument(
        "--image", default="default", metavar="NAME",
        help="the box's image, or an OCI image as in python:3.12-slim (default: default)",
    )  # fmt: skip
    p.add_argument(
        "--budget",
        type=_budget,
        default=Budget(),
        metavar="SPEC",
        help="the most it may spend: usd=N,tokens=N,seconds=N",
    )
    p.add_argument(
        "--on-failure", type=_failure, default=("fail", None), metavar="DOMAIN",
        help="fail (default), skip, continue, or 'retry(N, SECONDS)', or both: 'retry(2) continue'",
    )  # fmt: skip
    p.add_argument(
        "--input", action="append", default=[], metavar="FILE",
        help="a file for this stage alone; repeat for more. Those of 'run' go to the stages that need no other",
    )  # fmt: skip
    p.add_argument(
        "--mount", action="append", default=[], metavar="FOLDER:PATH",
        help="a folder of this machine and where the box has it; read-only, or FOLDER:PATH:rw; repeat for more",
    )  # fmt: skip
    p.add_argument(
        "--volume", action="append", default=[], metavar="NAME:PATH",
        help="a named volume and where the box has it, or NAME:PATH:ro; repeat for more",
    )  # fmt: skip
    p.add_argument(
        "--allow-command", "--commands", action="append", metavar="PROGRAM",
        help="a program the agent may execute, and no other; repeat, or separate with commas "
        "(default: all of the image's)",
    )  # fmt: skip
    p.add_argument(
        "--allow", action="append", default=[], metavar="HOST:PORT",
        help="where the box may connect to, and nowhere else; repeat for more (default: nowhere)",
    )  # fmt: skip
    p.add_argument(
        "--network", choices=get_args(Network),
        help="ways out of the box besides its model: none (default), allowlist (of --allow), monitored, "
        "proxy-only, open",
    )  # fmt: skip
    return p


def run_parser() -> Parser:
    """``%voidbox run``."""
    p = Parser(
        "%voidbox run",
        "Run stages and show them here: 'a', 'a b' side by side, 'a | [b, c]:text | d' as a pipeline.",
    )
    p.add_argument("stages", nargs="+", metavar="STAGE", help="declared stages")
    p.add_argument(
        "--input", action="append", default=[], metavar="FILE", help="goes into /workspace/input; repeat"
    )
    p.add_argument(
        "--timeout", type=_seconds, metavar="S", help="seconds per stage, instead of what each declares"
    )
    p.add_argument(
        "--budget", type=_budget, default=Budget(), metavar="SPEC", help="the most all stages may spend together"
    )
    p.add_argument("--fresh", action="store_true", help="run every stage, although an earlier result may be known")
    p.add_argument("--quiet", action="store_true", help="show nothing, only return the run")
    p.add_argument("--allow-failure", action="store_true", help="return a run that failed instead of raising")
    return p


def runs_parser() -> Parser:
    """``%voidbox runs``."""
    p = Parser("%voidbox runs", "The latest runs of all notebooks, as a data frame.")
    p.add_argument("--limit", type=_whole(1, 1000, "runs"), default=20, metavar="N", help="how many (default: 20)")
    return p


def dashboard_parser() -> Parser:
    """``%voidbox dashboard``."""
    p = Parser("%voidbox dashboard", "Cost over time, runs side by side and telemetry, live, of all notebooks.")
    p.add_argument("--theme", choices=("light", "dark"), help="instead of what the browser is set to")
    p.add_argument("--height", type=_whole(200, 4000, "pixels"), default=860, metavar="N", help="default: 860")
    return p


def attach_parser() -> Parser:
    """``%voidbox attach``."""
    p = Parser("%voidbox attach", "Show a run here, from its first event on; returns it when it has ended.")
    p.add_argument("run", help=RUN)
    p.add_argument("--quiet", action="store_true", help="show nothing, only return the run")
    p.add_argument("--allow-failure", action="store_true", help="return a run that failed instead of raising")
    return p


def retry_parser() -> Parser:
    """``%voidbox retry``."""
    p = Parser(
        "%voidbox retry",
        "Run again what a run was, as a new run, and show it here; what had succeeded is taken from the cache.",
    )
    p.add_argument("run", help=RUN)
    p.add_argument("--fresh", action="store_true", help="run every stage, although an earlier result may be known")
    p.add_argument("--quiet", action="store_true", help="show nothing, only return the run")
    p.add_argument("--allow-failure", action="store_true", help="return a run that failed instead of raising")
    return p


def run_id_parser(name: str, description: str) -> Callable[[], Parser]:
    """``%voidbox cancel``, ``pause`` and ``resume``."""

    def parser() -> Parser:
        p = Parser(f"%voidbox {name}", description)
        p.add_argument("run", help=RUN)
        return p

    return parser


def list_parser(what: str) -> Callable[[], Parser]:
    """``%voidbox skills`` and ``%voidbox stages``."""
    return lambda: Parser(f"%voidbox {what}", f"The {what} declared in this notebook, as a data frame.")


CELL: dict[str, Callable[[], Parser]] = {"skill": skill_parser, "stage": stage_parser}
"""Subcommands of ``%%voidbox``."""
LINE: dict[str, Callable[[], Parser]] = {
    "skill": skill_parser,
    "run": run_parser,
    "attach": attach_parser,
    "retry": retry_parser,
    "cancel": run_id_parser("cancel", "Cancel a run."),
    "pause": run_id_parser("pause", "Start nothing more of a run; what is at work goes on."),
    "resume": run_id_parser("resume", "Let a paused run go on, or one whose daemon died."),
    "runs": runs_parser,
    "dashboard": dashboard_parser,
    "skills": list_parser("skills"),
    "stages": list_parser("stages"),
}
"""Subcommands of ``%voidbox``."""


def subcommand(magic: str, line: str, known: dict[str, Any]) -> tuple[str, str]:
    """The first word of `line`, which must be in `known`, and the rest.

    Raises:
        UserError: another word.
    """
    word, _, rest = line.strip().partition(" ")
    if word in known:
        return word, rest
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    other, where = (LINE, "%voidbox") if known is CELL else (CELL, "%%voidbox")
    if word in other:
        shape = "a line" if where == "%voidbox" else "a cell"
        raise UserError(f"'{word}' is {shape} magic; write '{where} {word} …'.")
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}."
    raise UserError(f"{magic} has no subcommand {word!r}; {hint}")
