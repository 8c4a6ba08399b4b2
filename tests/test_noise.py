"""Seeds and noise."""

import pytest
import torch

from backend.diffusion import noise

CPU = torch.device("cpu")


def test_each_image_has_the_noise_of_its_own_seed() -> None:
    batch = noise.draw(noise.generators([7, 8, 9]), (3, 4, 8, 8), CPU)
    for i, seed in enumerate((7, 8, 9)):
        alone = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(batch[i], alone)


def test_the_second_draw_goes_on_where_the_first_ended() -> None:
    together, alone = noise.generators([7, 8]), noise.generators([8])
    for _ in range(3):
        assert torch.equal(noise.draw(together, (2, 4, 8, 8), CPU)[1], noise.draw(alone, (1, 4, 8, 8), CPU)[0])


def test_noise_leaves_torchs_own_generator_alone() -> None:
    before = torch.get_rng_state()
    noise.draw(noise.generators([1]), (1, 4, 8, 8), CPU)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_noise_of_a_seed_stays_what_it_is() -> None:
    """Of torch's CPU generator; were this to change, no old picture could be drawn again."""
    drawn = noise.draw(noise.generators([1234]), (1, 4, 64, 64), CPU)
    assert drawn[0, 0, 0, :3].tolist() == pytest.approx([-0.1117, -0.4966, 0.1631], abs=1e-4)
