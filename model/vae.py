"""The network: images to the parameters of q(z|x), latents to the parameters of p(x|z).

A convolutional residual encoder and decoder whose image shape, latent size and widths are configuration. The
network never samples and never adds a loss together; that is the business of ``elbo``.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, fields
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.likelihood import LikelihoodName, make_likelihood
from model.prior import PriorName, make_prior

LOG_SIGMA_MIN, LOG_SIGMA_MAX = -7.0, 2.0
MAX_SIZE, MAX_STAGES, MAX_BLOCKS = 65_536, 8, 256  # a checkpoint's configuration is a stranger's word
ADDED = {"flow_couplings", "flow_hidden"}  # fields that a checkpoint of the first release does not have


@dataclass(frozen=True)
class VAEConfig:
    """Everything that fixes the network's shape; stored in each checkpoint.

    The image is folded ``patch x patch`` pixels into channels (pixel unshuffle), then passes one stage per entry
    of ``widths``; between stages the sides are halved. The defaults read MNIST.

    Attributes:
        channels: ``C`` of the images.
        height: ``H`` of the images, a multiple of ``stride``.
        width: ``W`` of the images, a multiple of ``stride``.
        latent_dim: ``D``.
        patch: side of the square of pixels that is folded into channels.
        widths: channels of each stage.
        blocks: residual blocks of each stage.
        hidden: units of the layer between the last stage and the latents.
        likelihood: name of ``p(x|z)``.
        prior: name of ``p(z)``.
        flow_couplings: couplings of a ``realnvp`` prior.
        flow_hidden: units of the hidden layer of each coupling.

    Raises:
        ValueError: a size is not a positive integer or beyond reason, sizes contradict each other, or a name is
            unknown.
    """

    channels: int = 1
    height: int = 28
    width: int = 28
    latent_dim: int = 32
    patch: int = 2
    widths: tuple[int, ...] = (32, 64)
    blocks: tuple[int, ...] = (2, 3)
    hidden: int = 256
    likelihood: LikelihoodName = "bernoulli"
    prior: PriorName = "standard_normal"
    flow_couplings: int = 20
    flow_hidden: int = 250

    def __post_init__(self) -> None:
        if not 1 <= len(self.widths) <= MAX_STAGES or len(self.widths) != len(self.blocks):
            raise ValueError(
                f"got {len(self.widths)} widths and {len(self.blocks)} numbers of blocks; expected one of each "
                f"for every stage, and 1 to {MAX_STAGES} stages"
            )
        single = (self.channels, self.height, self.width, self.latent_dim, self.patch, self.hidden)
        sizes = (*single, self.flow_couplings, self.flow_hidden, *self.widths, *self.blocks)
        if any(type(size) is not int or not 1 <= size <= MAX_SIZE for size in sizes):
            raise ValueError(f"every size must be an integer from 1 to {MAX_SIZE}: {self}")
        if max(sum(self.blocks), self.flow_couplings) > MAX_BLOCKS:
            raise ValueError(
                f"got {sum(self.blocks)} residual blocks and {self.flow_couplings} couplings; expected at most "
                f"{MAX_BLOCKS} of each"
            )
        if self.height % self.stride or self.width % self.stride:
            raise ValueError(
                f"got images of {self.height}x{self.width}; with patch {self.patch} and {len(self.widths)} "
                f"stages both sides must be multiples of {self.stride}"
            )
        for name, known in ((self.likelihood, LikelihoodName), (self.prior, PriorName)):
            if name not in get_args(known):
                raise ValueError(f"got {name!r}; expected one of {', '.join(get_args(known))}")
        if self.prior == "realnvp" and self.latent_dim == 1:
            raise ValueError("got a realnvp prior over 1 latent; expected 2 or more latents, as it couples them")

    @property
    def stride(self) -> int:
        """Pixels of the image per cell of the last stage, along one side."""
        return int(self.patch * 2 ** (len(self.widths) - 1))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(C, H, W)``."""
        return self.channels, self.height, self.width

    @property
    def pixels(self) -> int:
        """Number of values in an image, ``C * H * W``."""
        return self.channels * self.height * self.width

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON writes them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> VAEConfig:
        """Rebuild a configuration that :meth:`to_dict` wrote; what an earlier release did not know has its default.

        Raises:
            ValueError: a field is missing, unknown or of the wrong kind.
        """
        known = {field.name for field in fields(cls)}
        if odd := (set(values) ^ known) - (ADDED - set(values)):
            names = ", ".join(sorted(map(str, odd)))
            raise ValueError(f"fields of the configuration are missing or unknown to this release: {names}")
        try:
            lists = {name: tuple(values[name]) for name in ("widths", "blocks")}
            return cls(**{**values, **lists})
        except TypeError as error:
            raise ValueError("a field of the configuration has a value of the wrong kind") from error


class ResidualBlock(nn.Module):
    """``x + conv(silu(conv(silu(x))))``, pre-activation (He et al. 2016), starting as the identity.

    The last convolution starts at zero, so deep stacks train without normalization layers; batch statistics would
    tie the images of a batch to each other.
    """

    def __init__(self, width: int) -> None:
        """Take and give ``width`` channels."""
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        for parameter in self.second.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the shape of ``x (N, width, H, W)``."""
        change: Tensor = self.second(F.silu(self.first(F.silu(x))))
        return x + change


class Encoder(nn.Module):
    """``(N, C, H, W)`` pixels to ``(N, D)`` means and logarithms of standard deviations."""

    def __init__(self, config: VAEConfig) -> None:
        """Build the layers with fresh weights."""
        super().__init__()
        self.patch = config.patch
        folded = config.channels * config.patch**2
        layers: list[nn.Module] = [nn.Conv2d(folded, config.widths[0], 3, padding=1)]
        for stage, (width, blocks) in enumerate(zip(config.widths, config.blocks, strict=True)):
            if stage:
                layers.append(nn.Conv2d(config.widths[stage - 1], width, 3, stride=2, padding=1))
            layers.extend(ResidualBlock(width) for _ in range(blocks))
        self.trunk = nn.Sequential(*layers)
        self.hidden = nn.Linear(_cells(config) * config.widths[-1], config.hidden)
        self.mu = nn.Linear(config.hidden, config.latent_dim)
        self.log_sigma = nn.Linear(config.hidden, config.latent_dim)

    def forward(self, x: Tensor, precision: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """Return ``mu`` and ``log_sigma`` in float32, ``(N, D)`` each; arguments as for :meth:`VAE.encode`."""
        folded = F.pixel_unshuffle(2 * x - 1, self.patch)  # (N, C*p*p, H/p, W/p)
        with _autocast(x, precision):
            features = self.trunk(folded.contiguous(memory_format=torch.channels_last))
        hidden = F.silu(self.hidden(F.silu(features.float()).flatten(1)))  # (N, hidden)
        return self.mu(hidden), soft_clamp(self.log_sigma(hidden), LOG_SIGMA_MIN, LOG_SIGMA_MAX)


class Decoder(nn.Module):
    """``(N, D)`` latents to the likelihood's parameters, ``(N, C, H, W)``; ``z`` also biases every stage."""

    def __init__(self, config: VAEConfig) -> None:
        """Build the layers with fresh weights."""
        super().__init__()
        self.patch = config.patch
        self.widths = config.widths[::-1]
        self.cells = (config.height // config.stride, config.width // config.stride)
        self.hidden = nn.Linear(config.latent_dim, config.hidden)
        self.unfold = nn.Linear(config.hidden, _cells(config) * self.widths[0])
        self.bias = nn.ModuleList(nn.Linear(config.latent_dim, width, bias=False) for width in self.widths)
        self.narrow = nn.ModuleList(
            nn.Conv2d(wide, narrow, 1) for wide, narrow in zip(self.widths, self.widths[1:], strict=False)
        )
        self.stages = nn.ModuleList(
            nn.Sequential(*(ResidualBlock(width) for _ in range(blocks)))
            for width, blocks in zip(self.widths, config.blocks[::-1], strict=True)
        )
        self.output = nn.Conv2d(self.widths[-1], config.channels * config.patch**2, 3, padding=1)

    def forward(self, z: Tensor, precision: torch.dtype = torch.float32) -> Tensor:
        """Return the raw output in float32, ``(N, C, H, W)``; arguments as for :meth:`VAE.decode`."""
        flat = self.unfold(F.silu(self.hidden(z)))
        features = flat.view(-1, self.widths[0], *self.cells)  # (N, widths[-1], H/stride, W/stride)
        features = features.contiguous(memory_format=torch.channels_last)
        biases = [bias(z)[:, :, None, None] for bias in self.bias]
        with _autocast(z, precision):
            for stage, blocks in enumerate(self.stages):
                if stage:
                    narrowed = self.narrow[stage - 1](features)
                    features = F.interpolate(narrowed, scale_factor=2.0, mode="nearest")
                features = blocks(features + biases[stage].to(features.dtype))
        return F.pixel_shuffle(self.output(F.silu(features.float())), self.patch)  # (N, C, H, W)


class VAE(nn.Module):
    """Encoder, decoder, likelihood and prior of one configuration."""

    def __init__(self, config: VAEConfig) -> None:
        """Build the layers with fresh weights."""
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.likelihood = make_likelihood(config.likelihood, config.channels)
        self.prior = make_prior(config.prior, config.latent_dim, config.flow_couplings, config.flow_hidden)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def encode(self, x: Tensor, precision: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """Return the posterior's ``mu`` and ``sigma``, both ``(N, D)`` in float32; never a sample.

        Args:
            x: pixels in 0..1, ``(N, C, H, W)`` in float32.
            precision: ``torch.bfloat16`` runs the convolutions in it; the heads stay in float32.
        """
        mu, log_sigma = self.encoder(x, precision)
        return mu, torch.exp(log_sigma)

    def decode(self, z: Tensor, precision: torch.dtype = torch.float32) -> Tensor:
        """Return the likelihood's raw parameters for latents ``z (N, D)``, ``(N, C, H, W)`` in float32.

        ``likelihood.mean`` turns them into the mean image, ``likelihood.log_prob`` into nats; ``precision`` is as
        for :meth:`encode`.
        """
        output: Tensor = self.decoder(z, precision)
        return output

    def parameter_count(self) -> int:
        """Return the number of trained values."""
        return sum(parameter.numel() for parameter in self.parameters())


def soft_clamp(value: Tensor, low: float, high: float) -> Tensor:
    """Return ``value`` bent smoothly into the range from ``low`` to ``high``, with a gradient everywhere.

    The upper end is soft: it is passed by less than ``exp(low - high)``, 0.0001 for -7 and 2.
    """
    return low + F.softplus(high - F.softplus(high - value) - low)


def _cells(config: VAEConfig) -> int:
    return (config.height // config.stride) * (config.width // config.stride)


def _autocast(like: Tensor, precision: torch.dtype) -> AbstractContextManager[object]:
    """Return what runs convolutions in ``precision``; nothing at all for float32."""
    if precision is torch.float32:
        return nullcontext()
    return torch.autocast(like.device.type, dtype=precision, cache_enabled=False)  # each weight is used once
