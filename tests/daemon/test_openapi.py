"""The API's description: valid, complete in what clients are generated from, and the committed copy current."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import Body, FastAPI
from openapi_spec_validator import OpenAPIV31SpecValidator

from voidbox_lab.cli.app import run
from voidbox_lab.daemon import app, openapi
from voidbox_lab.spec import RunSpec
from voidbox_lab.spec.api import ExecRequest

COMMITTED = Path(__file__).parents[2] / "docs" / "openapi.json"
DOCUMENT = app.document()


def operations() -> Iterator[tuple[str, dict[str, Any]]]:
    for path, found in DOCUMENT["paths"].items():
        for method, operation in found.items():
            yield f"{method.upper()} {path}", operation


each = pytest.mark.parametrize("operation", [o for _, o in operations()], ids=[name for name, _ in operations()])


def test_it_is_openapi() -> None:
    OpenAPIV31SpecValidator(DOCUMENT).validate()


def test_the_committed_one_is_current() -> None:
    assert json.loads(COMMITTED.read_text(encoding="utf-8")) == DOCUMENT, (
        "run scripts/openapi and commit the result"
    )


@each
def test_an_operation_says_what_generators_need(operation: dict[str, Any]) -> None:
    assert operation["operationId"][0].islower()
    assert operation["operationId"].isalnum()
    assert operation["summary"]
    assert [*operation["tags"]] == [t["name"] for t in openapi.TAGS if t["name"] in operation["tags"]]
    for parameter in operation.get("parameters", []):
        assert parameter["description"], parameter["name"]
    for status, response in operation["responses"].items():
        assert response["description"] != "Successful Response" or status.startswith("20")


@each
def test_every_error_is_declared_as_a_problem(operation: dict[str, Any]) -> None:
    errors = {s: r for s, r in operation["responses"].items() if s >= "400"}
    assert {"401", "421", "422", "429", "431", "500", "503"} <= errors.keys()
    if "requestBody" in operation:
        assert {"400", "408", "413"} <= errors.keys()
    if "application/json" in operation.get("requestBody", {}).get("content", {}):
        assert "415" in errors
    for response in errors.values():
        assert [*response["content"]] == ["application/problem+json"]
        assert response["content"]["application/problem+json"]["schema"]["$ref"].endswith("/Problem")


def test_operation_ids_are_unique() -> None:
    ids = [operation["operationId"] for _, operation in operations()]
    assert len(set(ids)) == len(ids)


def test_every_stream_names_its_events() -> None:
    streams = [
        media["schema"]
        for _, operation in operations()
        for kind, media in operation["responses"].get("200", {}).get("content", {}).items()
        if kind == "text/event-stream"
    ]
    assert len(streams) >= 3
    for schema in streams:
        for event in schema["anyOf"]:
            name = event["properties"]["data"]["contentSchema"]["$ref"].rpartition("/")[2]
            assert name in DOCUMENT["components"]["schemas"]


def test_examples_are_good() -> None:
    def example(path: str) -> Any:
        media = DOCUMENT["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        [value] = media["examples"].values()
        return value["value"]

    RunSpec.model_validate(example("/v1/runs"))
    ExecRequest.model_validate(example("/v1/exec"))


@pytest.mark.anyio
async def test_a_route_added_later_is_described_and_guarded() -> None:
    """Also one that is put on the application itself, and says nothing of errors."""
    api = FastAPI(openapi_url=None)
    api.router.route_class = openapi.Route

    @api.post("/later")
    async def later(x: int = Body(embed=True)) -> int:
        return x

    responses = openapi.describe(api)["paths"]["/later"]["post"]["responses"]
    assert {"401", "413", "415", "422", "429"} <= responses.keys()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://x") as http:
        assert (await http.post("/later", content=b'{"x": 1}')).status_code == 415
        assert (await http.post("/later", json={"x": 1})).json() == 1


def test_the_command_prints_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a daemon: there is not even a home for one, before and after."""
    monkeypatch.setenv("VOIDBOX_HOME", str(tmp_path / "home"))
    assert run(["daemon", "openapi"]) == 0
    assert json.loads(capsys.readouterr().out) == DOCUMENT
    assert not any(tmp_path.iterdir())
