"""Scripted models: answers from a file, served at the HTTP level of a real provider.

For demonstrations without a key and for tests. The agent's loop, its tools and what they compute are
real; only the model's words are written beforehand, and every call is recorded as ``source="scripted"``.
Token counts are estimates (four characters a token), because no tokenizer is involved.
"""

from voidbox_lab.gateway.scripted.library import Library
from voidbox_lab.gateway.scripted.script import Script
from voidbox_lab.gateway.scripted.upstream import ScriptedUpstream

__all__ = ["Library", "Script", "ScriptedUpstream"]
