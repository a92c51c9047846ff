"""A client of the Model Context Protocol over stdio, for servers that run beside the agent.

Source: Model Context Protocol, revision 2025-06-18: "Lifecycle", "Transports" (stdio), "Tools"; JSON-RPC 2.0.
`process` is a server's process and its lines, `rpc` the calls made over them, `server` one server with its tools,
`servers` all of a session. Tools only: no resources, prompts, sampling, elicitation or roots, and no HTTP.
"""


class McpProblem(Exception):
    """The session cannot have its servers; the message is a sentence that says which and why."""
