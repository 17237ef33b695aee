"""Which images a step of a training sees, and with which noise: a function of the run's seed and the step's number.

So a run that was interrupted goes on as if it had not been: there is no random state to keep. The images lie on the
device as bytes; a likelihood of black and white pixels gets them binarized afresh each time.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.scores import frozen_targets

VALIDATION_SEED = 20_200_522
REFERENCES = 1000  # images at most, where none are held out
VALIDATION_SHARE = 10  # at most one image in so many is held out


class Batches:
    """Training images in batches, without those that the run is validated on.

    Attributes:
        validation: targets of the validation images, ``(V, C, H, W)``, on the device.
        reference: images that a server compares others with, ``(R, C, H, W)`` uint8: those of the validation, or, where
            there are none, some of the training.
        count: training images, the validation images left out.
        size: images in a batch, ``B``.
        per_epoch: batches in a pass over the images; what does not fill a batch waits for another order.
    """

    def __init__(
        self, images: NDArray[np.uint8], size: int, validation: int, binarize: bool, seed: int, device: torch.device
    ) -> None:
        """Split ``images (N, C, H, W)``, N at least 1, and put them on the device.

        Args:
            images: not copied where the device is the CPU.
            size: of a batch; less where there are fewer images.
            validation: images to hold out; less where there are few.
            binarize: whether the likelihood is of black and white pixels.
            seed: of split, order, binarization and noise.
            device: where batches are made.
        """
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        held_out, self._rows = order.tensor_split([min(validation, len(images) // VALIDATION_SHARE)])
        self.validation = frozen_targets(images[held_out.numpy()], binarize, VALIDATION_SEED).to(device)
        self.reference = images[(held_out if len(held_out) else order[:REFERENCES]).numpy()]
        self._rows = self._rows.to(device)
        self.count = len(self._rows)
        self.size = min(size, self.count)
        self.per_epoch = self.count // self.size
        self._images = torch.from_numpy(np.require(images, requirements="W")).to(device)
        self._seed, self._binarize, self._device = seed, binarize, device
        self._epoch, self._order = -1, self._rows

    def at(self, step: int, latent_dim: int, draws: int = 1) -> tuple[Tensor, Tensor]:
        """Return the targets ``(B, C, H, W)`` and the noise ``(B, draws, latent_dim)`` of step number ``step``, from 0.

        They are made on the device, whose kind decides which numbers a seed stands for.
        """
        epoch, index = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            shuffled = torch.randperm(self.count, generator=self._generator(epoch, 1), device=self._device)
            self._epoch, self._order = epoch, self._rows[shuffled]
        x = self._images[self._order[index * self.size : (index + 1) * self.size]].float() / 255
        generator = self._generator(step, 2)
        if self._binarize:
            x = (torch.rand(x.shape, generator=generator, device=self._device) < x).float()
        return x, torch.randn(len(x), draws, latent_dim, generator=generator, device=self._device)

    def _generator(self, number: int, stream: int) -> torch.Generator:
        mixed = np.random.SeedSequence([self._seed, number, stream]).generate_state(1, np.uint64)[0]
        return torch.Generator(self._device).manual_seed(int(mixed >> np.uint64(1)))
