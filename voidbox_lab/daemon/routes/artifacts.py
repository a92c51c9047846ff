"""Artifacts: files in and out of the store."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from fastapi.responses import FileResponse

from voidbox_lab.daemon.core import Daemon
from voidbox_lab.daemon.openapi import Route, errors
from voidbox_lab.spec import InputFile

Digest = Annotated[
    str,
    Path(
        pattern="^sha256:[0-9a-f]{64}$",
        description="The digest that the upload gave.",
        examples=["sha256:" + "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"],
    ),
]
_BINARY: dict[str, Any] = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_PARTS: dict[int | str, dict[str, Any]] = {
    200: {"description": "The whole file.", "content": _BINARY},
    206: {"description": "The part that a Range header asked for.", "content": _BINARY},
}


def routes(daemon: Daemon) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["artifacts"], route_class=Route)

    @router.put(
        "/v1/artifacts",
        status_code=201,
        operation_id="uploadArtifact",
        summary="Keep a file",
        openapi_extra={
            "requestBody": {"content": _BINARY, "description": "The file's bytes; none: an empty one."}
        },
    )
    async def upload(request: Request) -> InputFile:
        """Its digest is its name from then on; the same bytes are kept once. At most 2 GiB."""
        return await daemon.artifacts.put(request.stream())

    @router.get(
        "/v1/artifacts/{digest}",
        operation_id="downloadArtifact",
        summary="A file's bytes, checked against its digest",
        response_class=FileResponse,
        responses=_PARTS
        | errors(
            _400="The Range header cannot be read.",
            _404="There is no such artifact.",
            _416="The Range lies outside of the file.",
        ),
    )
    async def download(digest: Digest) -> FileResponse:
        return FileResponse(await daemon.artifacts.verified(digest), media_type="application/octet-stream")

    return router
