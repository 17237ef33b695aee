"""One function per endpoint: read, await, write.

The order inside each is the order of refusals: what cannot be written (406), what is not loaded (503), what cannot be
read (400, 413, 415, 422), no room (429), too late (504).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Query, Request
from starlette.responses import PlainTextResponse, Response

from app import openapi, service, walks
from app.context import context_of, service_of
from app.divergences import Array, answer
from app.errors import Unprocessable
from app.negotiation import Format, choose_format
from app.payloads import ImageBatch, read_kl, read_latents, write_json
from app.reading import (
    WorkRoute,
    admitted,
    calculated,
    check_draws,
    check_items,
    choose_engine,
    content_type,
    decoded,
    images_of,
    offload,
    read_body,
)
from app.schemas import EncodeOut, ImagesOut, KlOut, MapOut, ModelOut, SampleOut, ScoreOut, TraversalOut, WalkOut
from app.service import Service
from app.version import VERSION
from app.walks_in import read_interpolation, read_traversal
from app.writing import map_tag, matches, sample_tag, write
from model.gaussian import fresh_seed

TENSORS = (Format.JSON, Format.NPY, Format.SAFETENSORS)
PICTURES = (Format.JSON, Format.NPY, Format.SAFETENSORS, Format.PNG)
FIELDS = (Format.JSON, Format.SAFETENSORS)
CLOSED_FORM, MONTE_CARLO = "closed_form", "monte_carlo"  # how a KL was found
UNCACHED = {"Cache-Control": "no-store"}

Seed = Annotated[int | None, Query(ge=0, le=2**63 - 1, description="0 to 2^63 - 1; without it a fresh one.")]
FormatName = Annotated[str | None, Query(alias="format", description="json, png, npy, safetensors; overrides Accept.")]
Columns = Annotated[int | None, Query(ge=1, le=1024, description="Images in a row of a contact sheet.")]
Resize = Annotated[Literal["auto", "never"], Query(description="never: refuse files of another size.")]
Draws = Annotated[int, Query(ge=0, le=256, description="Draws of z for each image.")]
Samples = Annotated[int, Query(ge=1, le=1024, description="Draws K for each image.")]
Count = Annotated[int, Query(ge=1, description="Number of images.")]
Temperature = Annotated[float, Query(ge=0, le=2, allow_inf_nan=False, description="Scale of the prior's noise.")]
Unit = Annotated[Literal["nats", "bits"], Query(description="Unit of the answer.")]

router = APIRouter(route_class=WorkRoute)


@router.post("/encode", response_model=EncodeOut, openapi_extra=openapi.IMAGES_IN, responses=openapi.TENSORS_OUT)
async def encode(
    request: Request, draws: Draws = 0, seed: Seed = None, resize: Resize = "auto", form: FormatName = None
) -> Response:
    """Encode images to the parameters of their posterior, `mu` and `sigma`; `mu` is the embedding.

    The same image gives the same answer: nothing is drawn unless `draws` asks for it.
    """
    chosen = _format(request, form, TENSORS)
    seed = fresh_seed() if seed is None and draws else seed or 0
    images = await images_of(request, max(1, draws))
    with admitted(request, images.count) as call:
        tensors = await service.encode(call, await decoded(request, call, images, resize), draws, seed)
        return await write(chosen, tensors, {"seed": seed} if draws else {})


@router.post("/decode", response_model=ImagesOut, openapi_extra=openapi.LATENTS_IN, responses=openapi.PICTURES_OUT)
async def decode(request: Request, columns: Columns = None, form: FormatName = None) -> Response:
    """Decode latents to the mean image of p(x|z)."""
    chosen = _format(request, form, PICTURES)
    body, engine = await read_body(request)
    dim, most = engine.latent_dim, service_of(request).settings.max_items
    z = await offload(request, lambda: read_latents(body, content_type(request), dim, max_items=most))
    with admitted(request, len(z)) as call:
        images = await service.decode(call, z)
        return await write(chosen, {"images": images}, columns=columns)


@router.get("/sample", response_model=SampleOut, responses=openapi.PICTURES_OUT)
async def sample(
    request: Request,
    n: Count = 1,
    seed: Seed = None,
    temperature: Temperature = 1.0,
    columns: Columns = None,
    form: FormatName = None,
) -> Response:
    """Draw new images from the prior; image i of a seed depends on the seed and i alone."""
    chosen = _format(request, form, PICTURES)
    engine, headers = choose_engine(request), UNCACHED
    check_items(n, service_of(request))
    if seed is not None:
        tag = sample_tag(engine, n, seed, temperature, columns, chosen.value)
        whose = "private" if request.app.state.keys else "public"  # a shared cache would answer without a key
        headers = {"ETag": tag, "Cache-Control": f"{whose}, max-age=31536000, immutable"}
        if matches(context_of(request).header(b"if-none-match"), tag):
            return Response(status_code=304, headers={"Vary": "Accept", "X-Seed": str(seed), **headers})
    seed = fresh_seed() if seed is None else seed
    with admitted(request, n) as call:
        z, images = await service.sample(call, n, seed, temperature)
        return await write(chosen, {"images": images, "z": z}, {"seed": seed}, headers, columns)


@router.post("/reconstruct", response_model=ImagesOut, openapi_extra=openapi.IMAGES_IN, responses=openapi.PICTURES_OUT)
async def reconstruct(
    request: Request, columns: Columns = None, resize: Resize = "auto", form: FormatName = None
) -> Response:
    """Return `decode(mu)` of images: what the model keeps of them."""
    chosen = _format(request, form, PICTURES)
    images = await images_of(request)
    with admitted(request, images.count, rows=2 * images.count) as call:
        kept = await service.reconstruct(call, await decoded(request, call, images, resize))
        return await write(chosen, {"images": kept}, columns=columns)


@router.post("/score", response_model=ScoreOut, openapi_extra=openapi.IMAGES_IN, responses=openapi.FIELDS_OUT)
async def score(
    request: Request, samples: Samples = 64, seed: Seed = None, resize: Resize = "auto", form: FormatName = None
) -> Response:
    """Score images: ELBO, log-likelihood with its standard error, and the percentile that an alarm reads."""
    chosen = _format(request, form, FIELDS)
    seed = fresh_seed() if seed is None else seed
    images = await images_of(request, samples)
    with admitted(request, images.count, rows=images.count * (samples + 1)) as call:
        fields = await service.score(call, await decoded(request, call, images, resize), samples, seed)
        method = MONTE_CARLO if "kl_standard_error" in fields else CLOSED_FORM
        return await write(chosen, fields, {"method": method, "samples": samples, "seed": seed})


@router.post("/kl", response_model=KlOut, openapi_extra=openapi.KL_IN, responses=openapi.FIELDS_OUT)
async def kl(
    request: Request,
    unit: Unit = "nats",
    samples: Samples = 64,
    seed: Seed = None,
    resize: Resize = "auto",
    form: FormatName = None,
) -> Response:
    """Compute KL divergence: of images' posteriors from the prior, or between distributions that the body gives.

    Under a learned prior the KL of an image has no closed form: it is the mean over `samples` draws.
    """
    chosen = _format(request, form, FIELDS)
    owner = service_of(request)
    body, engine = await read_body(request)
    most, shape = owner.settings.max_items, engine.image_shape
    question = await offload(request, lambda: read_kl(body, content_type(request), max_items=most, shape=shape))
    if isinstance(question, ImageBatch):
        draws = 0 if engine.exact_kl else samples
        check_draws(question.count, max(1, draws), owner)
        seed = fresh_seed() if seed is None else seed
        with admitted(request, question.count, rows=question.count * (1 + draws)) as call:
            x = await decoded(request, call, question, resize)
            found = await service.posterior_kl(call, x, samples, seed)
            return await _divergences(chosen, found, unit, samples=samples, seed=seed)
    with admitted(request, question.items, rows=0):
        return await _divergences(chosen, await calculated(request, answer, question), unit)


@router.post(
    "/interpolate", response_model=WalkOut, openapi_extra=openapi.INTERPOLATE_IN, responses=openapi.PICTURES_OUT
)
async def interpolate(
    request: Request, columns: Columns = None, resize: Resize = "auto", form: FormatName = None
) -> Response:
    """Walk from one latent or image to another and decode what lies between; a PNG has all steps in a row."""
    chosen = _format(request, form, PICTURES)
    body, engine = await read_body(request)
    asked = await offload(request, read_interpolation, body, content_type(request), engine.latent_dim)
    with admitted(request, asked.steps) as call:
        x = await decoded(request, call, asked.ends, resize) if isinstance(asked.ends, ImageBatch) else None
        tensors = await walks.interpolate(call, asked, x)
        return await write(chosen, tensors, columns=columns or asked.steps)


@router.post(
    "/traverse", response_model=TraversalOut, openapi_extra=openapi.TRAVERSE_IN, responses=openapi.PICTURES_OUT
)
async def traverse(request: Request, columns: Columns = None, form: FormatName = None) -> Response:
    """Leave a latent along single dimensions and decode what is met; a PNG has a row for each dimension."""
    chosen = _format(request, form, PICTURES)
    body, engine = await read_body(request)
    asked = await offload(request, read_traversal, body, content_type(request), engine.latent_dim)
    with admitted(request, asked.items) as call:
        tensors = await walks.traverse(call, asked)
        return await write(chosen, tensors, columns=columns or len(asked.values))


@router.get("/map", response_model=MapOut, responses=openapi.TENSORS_OUT)
async def latent_map(request: Request, form: FormatName = None) -> Response:
    """Show where held-out images lie in latent space, with its principal axes and the KL of each dimension."""
    # no room is asked for: the map lies there, and all who ask share it
    chosen, engine = _format(request, form, TENSORS), choose_engine(request)
    tensors, facts = walks.map_of(engine)
    tag = map_tag(engine, tensors | facts, chosen.value)
    headers = {"ETag": tag, "Cache-Control": "no-cache"}
    if matches(context_of(request).header(b"if-none-match"), tag):
        return Response(status_code=304, headers={"Vary": "Accept", **headers})
    return await write(chosen, tensors, facts, headers)


@router.get("/model", response_model=ModelOut)
async def model(request: Request) -> Response:
    """Tell what is loaded: shapes, weights, device, metrics as measured, limits."""
    return Response(write_json(_description(service_of(request))), headers=UNCACHED, media_type=Format.JSON.media_type)


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """Return everything that is measured, in Prometheus's text format."""
    content, media_type = service_of(request).metrics.render()
    return Response(content, headers=UNCACHED, media_type=media_type)


async def _divergences(chosen: Format, found: Mapping[str, Array], unit: str, **drawn: object) -> Response:
    """Return divergences in nats as an answer in ``unit``; if they were estimated, with how they were ``drawn``."""
    scale = 1.0 if unit == "nats" else 1 / math.log(2)
    with np.errstate(over="ignore"):
        tensors = {name: part * scale for name, part in found.items()}
    if unit == "bits" and not all(np.isfinite(part).all() for part in tensors.values()):
        raise Unprocessable("the divergence in bits is beyond the range of float64; ask for nats", code="out_of_range")
    facts = {"method": MONTE_CARLO, **drawn} if "standard_error" in found else {"method": CLOSED_FORM}
    return await write(chosen, tensors, {"unit": unit, **facts})


def _format(request: Request, name: str | None, offered: Sequence[Format]) -> Format:
    """Return the format of the answer, by its name in the query or by ``Accept``."""
    return choose_format(context_of(request).header(b"accept"), name, offered)


def _description(owner: Service) -> dict[str, Any]:
    """Return what ``GET /model`` says."""
    engine, settings = owner.engine, owner.settings
    config, (channels, height, width) = engine.config, engine.image_shape
    limits = ("max_body_bytes", "max_items", "max_pixels", "max_queue_items", "deadline_s")
    return {
        "name": engine.name,
        "digest": engine.digest,
        "image": {"channels": channels, "height": height, "width": width},
        "latent_dim": engine.latent_dim,
        "likelihood": config.likelihood,
        "prior": config.prior,
        "parameters": engine.parameters,
        "device": engine.device,
        "precision": engine.precision,
        "path": engine.path,
        "trained_on": engine.notes.trained_on,
        "metrics": engine.notes.metrics,
        "limits": {name: getattr(settings, name) for name in limits},
        "version": VERSION,
    }
