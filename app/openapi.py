"""What ``/openapi.json`` says beyond the signatures: media types in and out, errors, one example each.

Plain data for the documentation; no request passes through here.
"""

from __future__ import annotations

from typing import Any

from app.errors import CODES, TITLES
from app.schemas import ImagesIn, InterpolateIn, KlIn, LatentsIn, Problem, TraverseIn

DESCRIPTION = """A trained variational autoencoder behind HTTP: encode images to (mu, sigma), decode latents, sample new
images, compute KL divergence, score anomalies.

Images go in as PNG or JPEG, multipart form, JSON, NumPy `.npy` or safetensors; answers come as JSON, `.npy`,
safetensors or PNG, by `Accept` or `?format=`. Every error is `application/problem+json` with a stable `code`.
"""
# The documentation page styles itself from its script; everything still comes from this server.
DOCS_CSP = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; object-src 'none'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
NPY = {"application/x-npy": BINARY}
SAFETENSORS = {"application/x-safetensors": BINARY}
PNG = {"image/png": BINARY}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _body(*contents: dict[str, Any]) -> dict[str, Any]:
    merged = {name: value for content in contents for name, value in content.items()}
    return {"requestBody": {"required": True, "content": merged}}


def _inline(model: Any) -> dict[str, Any]:
    """Return a model's JSON schema with its definitions put in place, since nothing else refers to them."""
    schema: dict[str, Any] = model.model_json_schema()
    definitions = schema.pop("$defs", {})

    def put(value: Any) -> Any:
        if isinstance(value, dict):
            name = str(value.get("$ref", "")).rpartition("/")[2]
            return put(definitions[name]) if name in definitions else {key: put(part) for key, part in value.items()}
        return [put(part) for part in value] if isinstance(value, list) else value

    inlined: dict[str, Any] = put(schema)
    return inlined


_FORM = {
    "multipart/form-data": {
        "schema": {
            "type": "object",
            "properties": {"images": {"type": "array", "items": {"type": "string", "format": "binary"}}},
            "required": ["images"],
        }
    }
}
_FILES = {"image/png": BINARY, "image/jpeg": BINARY}
IMAGES_IN = _body(_FILES, _FORM, _json(_inline(ImagesIn)), NPY, SAFETENSORS)
LATENTS_IN = _body(_json(_inline(LatentsIn)), NPY, SAFETENSORS)
KL_IN = _body(_json(_inline(KlIn)), _FILES, _FORM, NPY, SAFETENSORS)
INTERPOLATE_IN = _body(_json(_inline(InterpolateIn)))
TRAVERSE_IN = _body(_json(_inline(TraverseIn)))
TENSORS_OUT: dict[int | str, dict[str, Any]] = {200: {"content": {**NPY, **SAFETENSORS}}}
PICTURES_OUT: dict[int | str, dict[str, Any]] = {200: {"content": {**NPY, **SAFETENSORS, **PNG}}}
FIELDS_OUT: dict[int | str, dict[str, Any]] = {200: {"content": {**SAFETENSORS}}}


def _error(status: int) -> dict[str, Any]:
    codes = ", ".join(f"`{code}`" for code, (of, _) in CODES.items() if of == status)
    problem = {"application/problem+json": {"schema": _inline(Problem)}}
    return {"description": f"{TITLES[status]}: {codes}", "content": problem}


ERRORS: dict[int | str, dict[str, Any]] = {status: _error(status) for status in TITLES}
