"""How good a model is on given images: ELBO, importance-weighted bound, posterior; every number in nats per image.

Works through any number of images in pieces of bounded size, without gradients. It knows neither data sets nor
files; ``evaluate`` decides which images and how many draws, ``train`` asks for its validation images.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from model.elbo import elbo_terms, importance_bound, log_likelihood_and_ratio, log_weights
from model.gaussian import kl_to_standard_normal, noise
from model.pixels import to_unit
from model.vae import VAE

BATCH = 250  # images encoded at once
ROWS = 1000  # latents decoded at once


class MeanTerms(NamedTuple):
    """Means over images, in nats.

    Attributes:
        elbo: ``reconstruction - kl``.
        reconstruction: ``E_q[log p(x|z)]``.
        kl: ``KL[q(z|x) || p(z)]``.
    """

    elbo: float
    reconstruction: float
    kl: float


def frozen_targets(images: NDArray[np.uint8], binarize: bool, seed: int) -> Tensor:
    """Return the targets of images: pixels in 0..1, each binarized once with its own grey as probability if asked for.

    Args:
        images: ``(N, C, H, W)``.
        binarize: whether the likelihood is of black and white pixels.
        seed: of the binarization; the same images and seed give the same targets.

    Returns:
        ``(N, C, H, W)`` float32.
    """
    x = torch.from_numpy(to_unit(images))
    if not binarize:
        return x
    return (torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) < x).float()


@torch.no_grad()
def mean_terms(vae: VAE, x: Tensor, seed: int) -> MeanTerms:
    """Return the ELBO and its parts by one draw an image, averaged over targets ``x (N, C, H, W)``, N at least 1."""
    epsilon = torch.from_numpy(noise(seed, len(x), (vae.config.latent_dim,))).to(x.device)
    parts = [elbo_terms(vae, x[i : i + BATCH], epsilon[i : i + BATCH]) for i in range(0, len(x), BATCH)]
    reconstruction = float(torch.cat([part.reconstruction for part in parts]).cpu().double().mean())
    kl = float(torch.cat([part.kl for part in parts]).cpu().double().mean())
    return MeanTerms(reconstruction - kl, reconstruction, kl)


@torch.no_grad()
def posterior(vae: VAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``mu`` and ``sigma``, ``(N, D)``, of targets ``x (N, C, H, W)``, N at least 1."""
    parts = [vae.encode(x[i : i + BATCH]) for i in range(0, len(x), BATCH)]
    return torch.cat([mu for mu, _ in parts]), torch.cat([sigma for _, sigma in parts])


@torch.no_grad()
def bounds(vae: VAE, x: Tensor, draws: int, items: NDArray[Any], seed: int, quiet: bool = False) -> NDArray[np.float64]:
    """Return the importance-weighted bound of some images, in nats.

    The noise of an image depends on its index and the seed alone, and few draws are the first of many: the
    difference between two numbers of draws is then nearly free of noise.

    Args:
        vae: on the device that computes.
        x: targets of all images, ``(N, C, H, W)``, there too.
        draws: ``K``.
        items: indices into ``x``, ``(M,)``, M at least 1.
        seed: of the noise.
        quiet: without a progress bar.

    Returns:
        ``(M,)``.
    """
    mu, sigma = posterior(vae, x[items])
    results = []
    with tqdm(total=len(items), desc=f"bound with {draws} draws", unit=" images", disable=quiet) as bar:
        for start in range(0, len(items), step := max(1, ROWS // draws)):
            chosen = slice(start, start + step)
            epsilon = np.concatenate([noise(seed, 1, (draws, mu.shape[1]), int(item)) for item in items[chosen]])
            on_device = torch.from_numpy(epsilon).to(x.device)
            weights = _chunked_weights(vae, x[items[chosen]], mu[chosen], sigma[chosen], on_device)
            results.append(importance_bound(weights).cpu().numpy())
            bar.update(len(results[-1]))
    return np.concatenate(results)


@torch.no_grad()
def soft_elbo(vae: VAE, images: NDArray[np.uint8], draws: int, seed: int) -> NDArray[np.float32]:
    """Return the ELBO of grey images as a server scores them, in nats, sorted: what a percentile is read from.

    Args:
        vae: on any device.
        images: ``(N, C, H, W)``, N at least 1.
        draws: ``K`` over which ``log p(x|z)`` is averaged, and the KL too where it has no closed form.
        seed: of the noise.

    Returns:
        ``(N,)``, ascending.
    """
    x = torch.from_numpy(to_unit(images)).to(device_of(vae))
    mu, sigma = posterior(vae, x)
    exact = vae.prior.closed_form_kl
    kl = kl_to_standard_normal(mu.double(), sigma.double()).sum(1)
    total = -kl if exact else torch.zeros_like(kl)
    for draw in tqdm(range(draws), desc="scores of held-out images", unit=" draws", disable=draws == 1):
        epsilon = torch.from_numpy(noise(seed + 1 + draw, len(x), (mu.shape[1],))).to(x.device)
        for start in range(0, len(x), ROWS):
            part = slice(start, start + ROWS)
            log_likelihood, ratio = log_likelihood_and_ratio(vae, x[part], mu[part], sigma[part], epsilon[part])
            total[part] += (log_likelihood if exact else log_likelihood + ratio) / draws
    return np.sort(total.cpu().numpy().astype(np.float32))


def device_of(vae: VAE) -> torch.device:
    """Return where the network's weights are."""
    return next(vae.parameters()).device


def _chunked_weights(vae: VAE, x: Tensor, mu: Tensor, sigma: Tensor, epsilon: Tensor) -> Tensor:
    """Return the log-weights ``(n, K)`` of noise ``(n, K, D)``, decoding at most ``ROWS`` latents at once."""
    per_chunk = max(1, ROWS // len(x))
    chunks = torch.split(epsilon, per_chunk, dim=1)
    return torch.cat([log_weights(vae, x, mu, sigma, chunk) for chunk in chunks], dim=1)


def place(name: str) -> torch.device:
    """Return the device called ``name``.

    Raises:
        ValueError: it is not there.
    """
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # the latter from a torch that was built without CUDA
        raise ValueError(f"--device {name}: {str(error).splitlines()[0]}") from error
