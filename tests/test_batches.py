"""Which images a step sees."""

import numpy as np
import torch

from model.batches import Batches

CPU = torch.device("cpu")


def numbered(count: int) -> np.ndarray:
    """Return images that are their own number, ``(count, 1, 2, 2)``."""
    return np.arange(count, dtype=np.uint8)[:, None, None, None] * np.ones((1, 1, 2, 2), np.uint8)


def batches(count: int = 100, size: int = 16, validation: int = 10, binarize: bool = False, seed: int = 0) -> Batches:
    return Batches(numbered(count), size, validation, binarize, seed, CPU)


def numbers(x: torch.Tensor) -> list[int]:
    return (x[:, 0, 0, 0] * 255).round().int().tolist()


def test_an_epoch_shows_no_image_twice_and_none_that_is_validated_on() -> None:
    made = batches()
    assert (made.count, made.size, made.per_epoch, len(made.validation)) == (90, 16, 5, 10)
    seen = [number for step in range(5) for number in numbers(made.at(step, 3)[0])]
    assert len(set(seen)) == len(seen) == 80
    assert not set(seen) & set(numbers(made.validation))
    everything = {number for step in range(100) for number in numbers(made.at(step, 3)[0])}
    assert everything | set(numbers(made.validation)) == set(range(100))


def test_epochs_have_different_orders() -> None:
    made = batches()
    assert numbers(made.at(0, 3)[0]) != numbers(made.at(5, 3)[0])


def test_a_step_depends_on_seed_and_number_alone() -> None:
    first, second = batches(binarize=True), batches(binarize=True)
    for step in (7, 3, 21):
        first.at(step, 3)
    for one, other in zip(first.at(13, 3), second.at(13, 3), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(first.at(13, 3)[1], batches(binarize=True, seed=1).at(13, 3)[1])


def test_pixels_are_binarized_afresh_each_time_with_their_grey_as_probability() -> None:
    made = Batches(np.full((40, 1, 8, 8), 51, np.uint8), 40, 0, True, 0, CPU)
    shown = torch.stack([made.at(step, 1)[0] for step in range(50)])
    assert set(shown.unique().tolist()) == {0.0, 1.0}
    assert abs(float(shown.mean()) - 0.2) < 4 * (0.16 / shown.numel()) ** 0.5
    assert not torch.equal(shown[0], shown[1])


def test_grey_pixels_stay_grey_for_other_likelihoods() -> None:
    x, epsilon = batches(binarize=False).at(0, 3)
    assert x.dtype == torch.float32
    assert x.shape == (16, 1, 2, 2)
    assert epsilon.shape == (16, 1, 3)
    assert batches(binarize=False).at(0, 3, draws=5)[1].shape == (16, 5, 3)
    assert len(x.unique()) == 16


def test_noise_is_standard_normal_and_new_at_every_step() -> None:
    made = batches()
    noise = torch.cat([made.at(step, 50)[1] for step in range(50)])
    assert abs(float(noise.mean())) < 4 / noise.numel() ** 0.5
    assert abs(float(noise.std()) - 1) < 4 / (2 * noise.numel()) ** 0.5


def test_a_tenth_of_the_images_at_most_is_validated_on() -> None:
    made = batches(count=50, validation=1000)
    assert len(made.validation) == 5
    assert made.count == 45
    assert len(batches(count=50, validation=0).validation) == 0


def test_a_batch_has_all_images_where_there_are_few() -> None:
    made = batches(count=20, size=256, validation=0)
    assert (made.size, made.per_epoch) == (20, 1)
    assert sorted(numbers(made.at(3, 1)[0])) == list(range(20))


def test_images_that_cannot_be_written_to_are_taken_too() -> None:
    images = np.frombuffer(numbered(20).tobytes(), np.uint8).reshape(20, 1, 2, 2)
    assert Batches(images, 5, 0, False, 0, CPU).at(0, 1)[0].shape == (5, 1, 2, 2)
