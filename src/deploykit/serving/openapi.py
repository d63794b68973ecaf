"""The two routes that FastAPI does not describe by itself, in the words of OpenAPI 3.1."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deploykit.serving.protocol import BINARY_SIZE, DATATYPE, LONGEST_ID
from deploykit.serving.service import Service

if TYPE_CHECKING:
    from fastapi import FastAPI

REFUSALS = {
    400: "The request is malformed, or is not what the model takes.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The body is compressed.",
    422: "The model has no finite answer to these images.",
    503: "The queue is full, the deadline passed, or the service warms up or drains; see Retry-After.",
}
NUMBERS = {"type": "array", "items": {"type": "number"}}
BYTES = {"type": "string", "format": "binary"}


def described(app: FastAPI, service: Service) -> dict[str, Any]:
    """Return the whole description; it is made once.

    Args:
        app: with the routes that it describes itself.
        service: whose tensors and limits hold.
    """
    from fastapi.openapi.utils import get_openapi

    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
        schema["components"]["schemas"]["Error"] = _object(error={"type": "string"})
        schema["paths"][f"/v2/models/{service.model.name}/infer"] = {"post": _infer(service)}
        schema["paths"]["/classify"] = {"post": _classify(service)}
        app.openapi_schema = schema
    return app.openapi_schema


def _infer(service: Service) -> dict[str, Any]:
    tensors, classes = service.tensors, len(service.model.classes)
    shape = {
        "type": "array",
        "prefixItems": [{"type": "integer", "minimum": 1, "maximum": tensors.most}, *map(_constant, tensors.shape)],
        "minItems": 1 + len(tensors.shape),
        "maxItems": 1 + len(tensors.shape),
    }
    taken = _object(name=_constant(tensors.input), datatype=_constant(DATATYPE), shape=shape, data=NUMBERS)
    wanted = _object(name=_constant(tensors.output))
    request = _object(inputs={"type": "array", "items": taken, "minItems": 1, "maxItems": 1})
    request["properties"] |= {
        "id": {"type": "string", "maxLength": LONGEST_ID},
        "outputs": {"type": "array", "items": wanted, "maxItems": 1},
    }
    logits = {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2}
    given = _object(name=_constant(tensors.output), datatype=_constant(DATATYPE), shape=logits)
    given["properties"] |= {"data": NUMBERS, "parameters": _object(**{BINARY_SIZE: {"type": "integer"}})}
    answer = _object(model_name=_constant(service.model.name), outputs={"type": "array", "items": given})
    answer["properties"]["id"] = {"type": "string"}
    return {
        "summary": "Compute logits",
        "description": f"Images float32, normalised, row by row; {classes} logits for each. Bytes instead of numbers: "
        "the extension binary_tensor_data.",
        "operationId": "infer",
        "requestBody": {"required": True, "content": {"application/json": {"schema": request}}},
        "responses": _responses(answer, {"application/octet-stream": {"schema": BYTES}}),
    }


def _classify(service: Service) -> dict[str, Any]:
    likely = _object(**{
        "class": {"type": "string"}, "probability": {"type": "number", "minimum": 0, "maximum": 1},
    })  # fmt: skip
    answer = _object(model_name=_constant(service.model.name), classes={"type": "array", "items": likely})
    form = {"type": "object", "properties": {"image": BYTES}, "required": ["image"]}
    pictures = {f"image/{kind}": {"schema": BYTES} for kind in ("png", "jpeg", "webp")}
    return {
        "summary": "Classify a picture",
        "description": "PNG, JPEG or WebP, as the body or as the one file of a form; the likeliest classes come back.",
        "operationId": "classify",
        "requestBody": {"required": True, "content": {**pictures, "multipart/form-data": {"schema": form}}},
        "responses": _responses(answer, {}),
    }


def _responses(answer: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    refusals = {str(status): {"description": words, "content": error} for status, words in REFUSALS.items()}
    return {
        "200": {"description": "Computed.", "content": {"application/json": {"schema": answer}, **others}},
        **refusals,
    }


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _constant(value: Any) -> dict[str, Any]:
    return {"const": value}
