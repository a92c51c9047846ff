"""Skills that are elsewhere: fetched from git repositories and archives, at an exact revision. Not for what is in
a skill, which `voidbox_lab.spec` says.

Importing this is what makes `Skill.remote` work.
"""

from voidbox_lab.skills.remote import cached, commit_of, fetch
from voidbox_lab.spec import remote as _remote

__all__ = ["cached", "commit_of", "fetch"]

_remote.provide(fetch)
