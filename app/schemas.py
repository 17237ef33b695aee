"""JSON bodies: the models that read them, and those that describe the answers in the API's document.

Bodies are read strictly: no unknown field, no number in a string, no NaN or infinity. How wrong bodies are
answered is the business of ``app.json_bodies``; what numbers mean is not known here.
"""

from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

MAX_ROWS: Final = 65_536
"""Most images or latents in a JSON body, whatever the settings allow."""

MAX_DIMENSIONS: Final = 65_536
"""Most numbers in a row, a mean, standard deviations or probabilities."""

MAX_COVARIANCE: Final = 1_024
"""Most dimensions of a distribution with a full covariance matrix."""


def _kind(item: object) -> str | None:
    """Return the tag of an item of ``images``; None for what is neither text nor a list."""
    if isinstance(item, str):
        return "file"
    if not isinstance(item, list):
        return None
    row = item[0] if item else None
    return "planes" if isinstance(row, list) and row and isinstance(row[0], list) else "plane"


def _end_kind(item: object) -> str | None:
    """Return the tag of an end of an interpolation: as of an image, or ``latent`` for a list of no lists."""
    return "latent" if isinstance(item, list) and not (item and isinstance(item[0], list)) else _kind(item)


# Lists stop at their first error: a wrong body costs no more than a right one.
Row = Annotated[list[float], Field(fail_fast=True, max_length=MAX_DIMENSIONS)]
Rows = Annotated[list[Row], Field(fail_fast=True, max_length=MAX_ROWS)]
Plane = Annotated[list[Row], Field(fail_fast=True, max_length=MAX_ROWS)]
Planes = Annotated[list[Plane], Field(fail_fast=True, max_length=MAX_ROWS)]
Covariance = Annotated[
    list[Annotated[list[float], Field(fail_fast=True, max_length=MAX_COVARIANCE)]],
    Field(fail_fast=True, max_length=MAX_COVARIANCE),
]
Item = Annotated[
    Annotated[str, Tag("file")] | Annotated[Plane, Tag("plane")] | Annotated[Planes, Tag("planes")],
    Discriminator(_kind),
]

End = Annotated[
    Annotated[str, Tag("file")]
    | Annotated[Row, Tag("latent")]
    | Annotated[Plane, Tag("plane")]
    | Annotated[Planes, Tag("planes")],
    Discriminator(_end_kind),
]
Steps = Annotated[int, Field(ge=2, le=64)]
Dim = Annotated[int, Field(ge=0, lt=MAX_DIMENSIONS)]


class Body(BaseModel):
    """A body that is read; ``form`` shows it to those who sent another one."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    form: ClassVar[str]


class ImagesIn(Body):
    """Images: base64 of image files, or nested lists of numbers in 0..1."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"images": ["iVBORw0KGgo…"]}]})
    form = '{"images": [ITEM, …]}, ITEM being base64 of a PNG or JPEG file, or nested lists of numbers in 0..1'
    images: list[Item] = Field(
        fail_fast=True,
        max_length=MAX_ROWS,
        description="Each a base64 string of a PNG or JPEG file (a data: URL is fine too), or nested lists "
        "of numbers in 0..1 of shape (C, H, W), or (H, W) where the model has one channel.",
    )


class LatentsIn(Body):
    """Latents to decode."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"z": [[0.0, 1.5]]}]})
    form = '{"z": [[D numbers], …]}'
    z: Rows = Field(description="N rows of D numbers, D being the model's latent_dim.")


class InterpolateIn(Body):
    """Two latents or two images, and how to walk from one to the other."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"from": [0.0, 1.5], "to": [1.0, -0.5], "steps": 9, "path": "spherical"}]}
    )
    form = '{"from": END, "to": END, "steps": 2 to 64, "path": "linear" or "spherical"}, both END a latent or an image'
    start: End = Field(
        alias="from",
        description="D numbers, or an image: base64 of a PNG or JPEG file, or nested lists of numbers in 0..1; of an "
        "image, mu is taken.",
    )
    end: End = Field(alias="to", description="The other end, of the same kind.")
    steps: Steps = Field(9, description="Latents on the way, both ends included.")
    path: Literal["linear", "spherical"] = Field(
        "linear", description="A straight line, or an arc around the origin (slerp)."
    )


class TraverseIn(Body):
    """A latent, and the dimensions along which to leave it."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"z": [0.0, 1.5], "dims": [0, 1], "low": -3.0, "high": 3.0, "steps": 9}]}
    )
    form = '{"z": [D numbers], "dims": [indices] or null, "low": -3, "high": 3, "steps": 2 to 64}'
    z: Row = Field(description="D numbers: what the other dimensions stay at.")
    dims: Annotated[list[Dim], Field(fail_fast=True, max_length=MAX_DIMENSIONS)] | None = Field(
        None, description="Indices from 0, one row of images each; null or none: all, ordered by KL, largest first."
    )
    low: float = Field(-3.0, description="First value of the dimension.")
    high: float = Field(3.0, description="Last value, above low.")
    steps: Steps = Field(9, description="Images in a row.")


class Distribution(Body):
    """A multivariate normal (mean with std or cov) or a discrete distribution (probs)."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [{"required": ["mean", "std"]}, {"required": ["mean", "cov"]}, {"required": ["probs"]}]
        }
    )
    form = '{"mean": […], "std": […]}, {"mean": […], "cov": [[…]]} or {"probs": […]}'
    mean: Row = Field(default_factory=list, description="D means.")
    std: Row = Field(default_factory=list, description="D standard deviations, above 0.")
    cov: Covariance = Field(default_factory=list, description="(D, D) covariance, positive definite.")
    probs: Row = Field(default_factory=list, description="Probabilities; their sum is 1.")


class KlIn(Body):
    """One of: images; mu and sigma; two normals p and q; two discrete distributions p and q."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [{"required": ["images"]}, {"required": ["mu", "sigma"]}, {"required": ["p", "q"]}],
            "examples": [{"mu": [[0.5]], "sigma": [[1.0]]}],
        }
    )
    form = (
        'one of {"images": […]}, {"mu": [[…]], "sigma": [[…]]}, {"p": G, "q": G} with G being '
        '{"mean": […], "std": […]} or {"mean": […], "cov": [[…]]}, '
        'and {"p": {"probs": […]}, "q": {"probs": […]}}'
    )
    images: list[Item] = Field(
        default_factory=list, fail_fast=True, max_length=MAX_ROWS, description="Images, as for /encode."
    )
    mu: Rows = Field(default_factory=list, description="N rows of D means, any D of 1 or more.")
    sigma: Rows = Field(default_factory=list, description="N rows of D standard deviations, above 0.")
    p: Distribution = Field(default_factory=Distribution, description="The distribution that is measured.")
    q: Distribution = Field(default_factory=Distribution, description="The one it is measured against.")


class EncodeOut(BaseModel):
    """Posteriors of N images; mu is the latent of an image, z are draws around it."""

    mu: list[list[float]] = Field(description="(N, D) posterior means: the latents.")
    sigma: list[list[float]] = Field(description="(N, D) posterior standard deviations.")
    z: list[list[list[float]]] | None = Field(None, description="(N, S, D) draws, where draws=S was asked for.")
    seed: int | None = Field(None, description="Seed of the draws.")


class ImagesOut(BaseModel):
    """Images, in the order of the request."""

    images: list[str] = Field(description="N base64 strings of PNG files.")


class SampleOut(BaseModel):
    """New images with the latents that they were decoded from."""

    images: list[str] = Field(description="N base64 strings of PNG files.")
    z: list[list[float]] = Field(description="(N, D) latents drawn from the prior.")
    seed: int = Field(description="Seed that draws the same images again.")


class WalkOut(BaseModel):
    """Images on the way from one latent to another."""

    images: list[str] = Field(description="Base64 strings of PNG files, one for each step.")
    z: list[list[float]] = Field(description="(steps, D) latents that they were decoded from.")


class TraversalOut(BaseModel):
    """Images in rows, one row for each dimension."""

    images: list[str] = Field(description="Base64 strings of PNG files, row by row.")
    z: list[list[float]] = Field(description="Latents that they were decoded from, in the same order.")
    dims: list[int] = Field(description="The dimension of each row.")
    values: list[float] = Field(description="What it is set to in each column.")


class MapOut(BaseModel):
    """Where held-out images lie in latent space, and which of its directions matter."""

    mu: list[list[float]] = Field(description="(M, D) posterior means of at most 2,000 held-out images.")
    labels: list[int] | None = Field(description="Class of each, from 0; null where the data have none.")
    label_names: list[str] | None = Field(description="What the classes are called.")
    mean: list[float] = Field(description="D means of mu, over all held-out images.")
    axes: list[list[float]] = Field(description="(2, D) principal axes of mu, unit vectors, the wider first.")
    variance: list[float] = Field(description="Variance of mu along each axis.")
    kl_per_dimension: list[float] = Field(description="D mean divergences of the posteriors, nats.")
    active_units: int = Field(description="Latents whose mu varies by more than 0.01.")
    digest: str = Field(description="Of the weights, first 16 hex digits.")


class KlOut(BaseModel):
    """KL divergences, one for each item."""

    kl: list[float] = Field(description="N divergences, in the unit asked for.")
    per_dimension: list[list[float]] | None = Field(
        None, description="(N, D) summands of kl, where both distributions are diagonal."
    )
    standard_error: list[float] | None = Field(None, description="Of kl, in its unit, where it is a mean over draws.")
    unit: str = Field(description="nats or bits.")
    method: str = Field(description="closed_form, or monte_carlo: a mean over draws, under a learned prior.")
    samples: int | None = Field(None, description="Draws for each image, where there were any.")
    seed: int | None = Field(None, description="Seed of the draws.")


class ScoreOut(BaseModel):
    """How well the model explains each image; natural logarithms (nats) but for bits_per_dim."""

    elbo: list[float] = Field(description="reconstruction - kl: a lower bound of log p(x).")
    reconstruction: list[float] = Field(description="Mean of log p(x|z) over the draws of z.")
    kl: list[float] = Field(description="KL divergence of the posterior from the prior.")
    kl_standard_error: list[float] | None = Field(None, description="Of kl, where it is a mean over the draws.")
    log_likelihood: list[float] = Field(description="Importance-weighted bound of log p(x), tighter than elbo.")
    standard_error: list[float] = Field(description="Standard error of log_likelihood.")
    bits_per_dim: list[float] = Field(description="-log_likelihood in bits for each of the C*H*W numbers.")
    percentile: list[float] = Field(description="Where the elbo stands among held-out images: 0..100.")
    method: str = Field(description="How kl was found: closed_form or monte_carlo.")
    samples: int = Field(description="Draws K for each image.")
    seed: int | None = Field(None, description="Seed of the draws.")


class ImageShape(BaseModel):
    """Shape of the images that the model reads and writes."""

    channels: int
    height: int
    width: int


class Limits(BaseModel):
    """What one request may hold."""

    max_body_bytes: int
    max_items: int
    max_pixels: int
    max_queue_items: int
    deadline_s: float


class ModelOut(BaseModel):
    """The loaded model and the limits of this server."""

    name: str
    digest: str = Field(description="First 16 hex digits of the SHA-256 of the weights.")
    image: ImageShape
    latent_dim: int
    likelihood: str
    prior: str
    parameters: int = Field(description="Number of trained numbers.")
    device: str
    precision: str
    trained_on: str
    metrics: dict[str, Any] = Field(description="What the evaluation measured, with sample counts.")
    limits: Limits
    version: str = Field(description="Version of the service.")


class ProblemEntry(BaseModel):
    """One of the things that are wrong with a request."""

    where: str = Field(description="Place in the request, such as body.z.0.3.")
    message: str


class Problem(BaseModel):
    """An error (RFC 9457); code is stable, detail says what was got, what was expected and what to do."""

    type: str = "about:blank"
    title: str
    status: int
    code: str
    detail: str
    error: str = Field(description="The same text as detail.")
    request_id: str
    errors: list[ProblemEntry] | None = Field(None, description="At most 8 entries.")
    retry_after_ms: int | None = Field(None, description="Where the queue is full: when to try again.")
