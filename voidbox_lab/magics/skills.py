"""What ``voidbox skill`` declares, of its options and its cell's text."""

from __future__ import annotations

import argparse

from voidbox_lab.errors import UserError
from voidbox_lab.spec import Capability, Skill
from voidbox_lab.spec.skill import image_name

GOES_WITH = {
    "mcp": ("package", "env", "tool"),
    "cli": ("program",),
    "oci": ("path",),
    "remote": ("path", "revision"),
}
"""Options of kinds; of all of them: ``--description``."""


def declared(options: argparse.Namespace, cell: str | None) -> Capability:
    """The skill; `cell` is None for a line.

    Raises:
        UserError: options that do not go together, no name, or whatever the kind refuses.
    """
    kind = next((k for k in ("mcp", "cli", "agent", "oci", "remote", "file") if getattr(options, k)), None)
    for option in sorted({o for several in GOES_WITH.values() for o in several}):
        if getattr(options, option) and option not in GOES_WITH.get(kind or "", ()):
            kinds = " or ".join(f"--{k}" for k, several in GOES_WITH.items() if option in several)
            raise UserError(f"--{option} goes with {kinds}; add that, or leave --{option} out.")
    name, described = options.name, options.description
    text = (cell or "").strip()
    if kind is None:
        if cell is None:
            raise UserError(
                "A skill has its text in a cell, below '%%voidbox skill …'; or give --mcp, --cli, --agent, --oci, "
                "--remote or --file."
            )
        return Skill.from_markdown(cell, name=name, description=described)
    if text and kind != "cli":
        raise UserError(f"A skill with --{kind} has no text of its own; leave the cell's text out.")
    if kind == "remote":
        where, path, revision = options.remote, options.path, options.revision
        return Skill.remote(where, path=path, revision=revision, name=name, description=described)
    if kind == "file":
        return Skill.file(options.file, name=name, description=described)
    if kind == "oci":
        name = name or image_name(options.oci)
        return Skill.oci(options.oci, path=options.path, name=name, description=described or "")
    if name is None:
        raise UserError(f"A skill with --{kind} needs a name; write '%voidbox skill NAME --{kind} …'.")
    if kind == "agent":
        return Skill.agent(name)
    if kind == "cli":
        more = {"commands": options.program, "description": described or "", "body": f"{text}\n" if text else ""}
        return Skill.cli(name, *options.cli, **more)
    return Skill.mcp(
        name,
        options.mcp,
        packages=options.package,
        env=_environment(options.env),
        tools=options.tool,
        description=described or "",
    )


def _environment(options: list[str]) -> dict[str, str]:
    found = {}
    for option in options:
        name, equals, value = option.partition("=")
        if not equals:
            raise UserError(f"--env {option!r} is not NAME=VALUE; write --env TZ=UTC.")
        found[name] = value
    return found
