"""What a tool answered, as text: the model is sent text only."""

from __future__ import annotations

from lab_agent import jsons

MAX_PARTS = 1000


def as_text(result: dict) -> str:
    """The text of a result of ``tools/call`` (Tools, "Tool Result"); what is no text becomes a note."""
    content = result.get("content")
    parts = [p for p in content if isinstance(p, dict)] if isinstance(content, list) else []
    texts = [_part(p) for p in parts[:MAX_PARTS]]
    if len(parts) > MAX_PARTS:
        texts.append(f"[{len(parts) - MAX_PARTS} more parts]")
    if not texts and "structuredContent" in result:
        # A server with structured content should send it as text as well; this one did not.
        texts.append(jsons.dumps(result["structuredContent"]).decode())
    return "\n".join(texts) or "[no output]"


def _part(part: dict) -> str:
    kind = part.get("type")
    if kind == "text":
        return str(part.get("text", ""))
    if kind in {"image", "audio"}:
        return f"[{kind}, {_media_type(part)}, {_bytes(part.get('data'))} bytes: not shown]"
    if kind == "resource_link":
        return f"[resource {str(part.get('name', ''))[:200]!r} at {str(part.get('uri', ''))[:1000]}]"
    resource = part.get("resource")
    if kind == "resource" and isinstance(resource, dict):
        where = str(resource.get("uri", ""))[:1000]
        if isinstance(resource.get("text"), str):
            return f"[resource {where}]\n{resource['text']}"
        return f"[resource {where}, {_media_type(resource)}, {_bytes(resource.get('blob'))} bytes: not shown]"
    return f"[a part of type {str(kind)[:100]!r}: not shown]"


def _media_type(part: dict) -> str:
    return str(part.get("mimeType", "of an unknown type"))[:100]


def _bytes(data: object) -> int:
    """How many bytes are in `data`, which is base64."""
    return len(data.rstrip("=")) * 3 // 4 if isinstance(data, str) else 0
