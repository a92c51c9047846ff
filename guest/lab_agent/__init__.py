"""lab-agent: the small agent that is in every image.

A tool loop against the Anthropic Messages API (streamed), with four tools, skills, limits, and events in
the shape of claude-code's ``--output-format stream-json``. Standard library only, and little of it: under
an emulated CPU each import costs tens of milliseconds. `main.main(argv, env, stdin, stdout)` has no side
effects at import, so that a warm process can import it, fork and call it.

Not a sandbox and not a policy: what it may do is decided around it. The tools of MCP servers (`mcp`) join the
built-in ones in `tools.Toolbox`.
"""

VERSION = "0.1.0"
