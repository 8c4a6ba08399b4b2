"""Samplers and schedules against k-diffusion, diffusers and A1111's definitions."""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from types import ModuleType
from typing import Any

import pytest
import torch
from diffusers.schedulers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from backend import sampling
from backend.diffusion.samplers import PREDICTIONS, SAMPLERS, SigmaScheduler, from_config
from backend.diffusion.schedules import SCHEDULES, SigmaTable, trained_sigmas

SD1 = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SHAPE = (2, 4, 8, 8)


@pytest.fixture(scope="module")
def k_diffusion() -> Iterator[ModuleType]:
    """Its modules `sampling` and `external`; the package itself imports half of PyPI."""
    spec = importlib.util.find_spec("k_diffusion")
    assert spec
    package = ModuleType("k_diffusion")
    package.__path__ = list(spec.submodule_search_locations or ())
    sys.modules["k_diffusion"] = package
    importlib.import_module("k_diffusion.external")
    yield package
    for name in [name for name in sys.modules if name.split(".")[0] == "k_diffusion"]:
        del sys.modules[name]


def model(x: Tensor, timestep: Tensor) -> Tensor:
    """Stands for a UNet: neither linear nor the same at two timesteps."""
    return torch.tanh(x * 1.3 + 0.1) + 0.001 * timestep * x.roll(1, -1)


def scheduler_for(sampler: str, schedule: str, steps: int, last: int | None = None, **config: Any) -> SigmaScheduler:
    scheduler = from_config({**SD1, **config})
    scheduler.plan(sampler, schedule, last)
    scheduler.set_timesteps(steps)
    return scheduler


def noise(seed: int = 0) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sample(scheduler: SigmaScheduler | EulerDiscreteScheduler, start: Tensor, seeds: Sequence[int] = (1, 2)) -> Tensor:
    """What a pipeline does with a scheduler."""
    latents = start * scheduler.init_noise_sigma
    extra = (
        {"generator": [torch.Generator().manual_seed(s) for s in seeds]}
        if isinstance(scheduler, SigmaScheduler)
        else {}
    )
    for timestep in scheduler.timesteps:
        output = model(scheduler.scale_model_input(latents, timestep).double(), timestep)
        latents = scheduler.step(output, timestep, latents, **extra, return_dict=False)[0]
    return latents


def exact(scheduler: SigmaScheduler) -> SigmaScheduler:
    scheduler.model_dtype = torch.float64
    return scheduler


def test_the_tables_name_the_same_samplers_and_schedules() -> None:
    assert set(SAMPLERS) == {s.name for s in sampling.SAMPLERS}
    assert {s.label for s in sampling.SCHEDULES} - {sampling.AUTOMATIC} <= set(SCHEDULES)
    assert {s.schedule for s in sampling.SAMPLERS} <= set(SCHEDULES)


def test_the_trained_sigmas_are_those_of_diffusers() -> None:
    theirs = EulerDiscreteScheduler(**SD1)
    alphas = theirs.alphas_cumprod.double()
    ours = torch.tensor(trained_sigmas("scaled_linear", 0.00085, 0.012, 1000).sigmas, dtype=torch.float64)
    torch.testing.assert_close(ours, ((1 - alphas) / alphas).sqrt(), rtol=1e-4, atol=0)
    assert ours[[0, -1]].tolist() == pytest.approx([0.0292, 14.6146], abs=1e-4)  # as A1111 prints them


@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_every_beta_schedule_is_that_of_diffusers(beta_schedule: str, zero_snr: bool) -> None:
    theirs = DDIMScheduler(
        beta_start=0.0001, beta_end=0.02, beta_schedule=beta_schedule, rescale_betas_zero_snr=zero_snr
    ).alphas_cumprod.double()
    sigmas = trained_sigmas(beta_schedule, 0.0001, 0.02, 1000, zero_snr=zero_snr).sigmas
    ours = torch.tensor([1 / (1 + sigma**2) for sigma in sigmas], dtype=torch.float64)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-7)


def test_timesteps_are_interpolated_as_k_diffusion_does(k_diffusion: ModuleType) -> None:
    table = trained_sigmas("scaled_linear", 0.00085, 0.012, 1000)
    theirs = k_diffusion.external.DiscreteSchedule(torch.tensor(table.sigmas, dtype=torch.float64), quantize=False)
    for time in (0.0, 0.3, 17.5, 500.25, 998.9, 999.0):
        sigma = theirs.t_to_sigma(torch.tensor(time, dtype=torch.float64))
        assert table.sigma(time) == pytest.approx(float(sigma), rel=1e-5)  # its t is a float32
        assert table.time(table.sigma(time)) == pytest.approx(time, abs=1e-6)
        assert table.time(float(sigma)) == pytest.approx(float(theirs.sigma_to_t(sigma)), abs=1e-3)


@pytest.mark.parametrize("steps", [1, 2, 7, 20, 30])
def test_schedules_are_those_of_k_diffusion(k_diffusion: ModuleType, steps: int) -> None:
    table = trained_sigmas("scaled_linear", 0.00085, 0.012, 1000)
    theirs = k_diffusion.external.DiscreteSchedule(torch.tensor(table.sigmas), quantize=False)
    karras = k_diffusion.sampling.get_sigmas_karras(steps, table.sigmas[0], table.sigmas[-1])
    assert SCHEDULES["Uniform"](steps, table) == pytest.approx(theirs.get_sigmas(steps).tolist(), rel=1e-5)
    assert SCHEDULES["Karras"](steps, table) == pytest.approx(karras.tolist(), rel=1e-5)
    sgm = [float(theirs.t_to_sigma(t)) for t in torch.linspace(999, 0, steps + 1)[:-1]]
    assert SCHEDULES["SGM Uniform"](steps, table) == pytest.approx([*sgm, 0], rel=1e-5)


def test_ddim_runs_over_a1111s_timesteps() -> None:
    assert scheduler_for("DDIM", "DDIM", 20).times == tuple(range(951, 0, -50))
    assert scheduler_for("DDIM", "DDIM", 30).times == tuple(range(991, 0, -33))  # 31: 30 does not divide 1000


def test_lcm_stays_on_the_timesteps_it_was_distilled_at() -> None:
    assert scheduler_for("LCM", "Uniform", 4).times == (999.0, 679.0, 339.0, 19.0)
    assert scheduler_for("LCM", "SGM Uniform", 4).times == (999.0, 759.0, 499.0, 259.0)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 13, 150])
def test_sigmas_fall_from_the_noisiest_to_nothing(schedule: str, steps: int) -> None:
    sigmas = scheduler_for("Euler", schedule, steps).sigmas
    assert sigmas[-1] == 0
    assert all(a > b for a, b in pairwise(sigmas))
    assert len(sigmas) == steps + 1 or schedule == "DDIM"


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [4, 10, 28])  # 999 / (steps - 1) is whole: no sigma lies between two trained ones
def test_euler_equals_diffusers(prediction: str, steps: int) -> None:
    theirs = EulerDiscreteScheduler(**SD1, prediction_type=prediction, timestep_spacing="linspace")
    theirs.set_timesteps(steps)
    ours = exact(scheduler_for("Euler", "Uniform", steps, prediction_type=prediction))
    assert ours.times == pytest.approx(theirs.timesteps.tolist(), abs=1e-3)
    expected = sample(theirs, noise())
    torch.testing.assert_close(sample(ours, noise()), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


Reference = Callable[[Any, Any, Tensor, Tensor, Any], Tensor]
REFERENCES: dict[str, Reference] = {
    "Euler": lambda k, denoiser, x, sigmas, draw: k.sample_euler(denoiser, x, sigmas, disable=True),
    "DPM++ 2M": lambda k, denoiser, x, sigmas, draw: k.sample_dpmpp_2m(denoiser, x, sigmas, disable=True),
    "Euler a": lambda k, denoiser, x, sigmas, draw: k.sample_euler_ancestral(
        denoiser, x, sigmas, disable=True, noise_sampler=draw
    ),
}


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("schedule", ["Uniform", "Karras", "SGM Uniform"])
@pytest.mark.parametrize("sampler", REFERENCES)
def test_samplers_equal_k_diffusion(k_diffusion: ModuleType, sampler: str, schedule: str, prediction: str) -> None:
    ours = exact(scheduler_for(sampler, schedule, 12, prediction_type=prediction))
    wrappers = {
        "epsilon": k_diffusion.external.DiscreteEpsDDPMDenoiser,
        "v_prediction": k_diffusion.external.DiscreteVDDPMDenoiser,
    }
    alphas = torch.tensor([1 / (1 + s**2) for s in ours.table.sigmas], dtype=torch.float64)
    wrapped = wrappers[prediction](lambda x, t: model(x, t.view(-1, 1, 1, 1)), alphas, quantize=False)
    generators = [torch.Generator().manual_seed(s) for s in (1, 2)]

    def draw(sigma: float, following: float) -> Tensor:
        return torch.stack([torch.randn(SHAPE[1:], generator=g, dtype=torch.float64) for g in generators])

    sigmas = torch.tensor(ours.sigmas, dtype=torch.float64)
    expected = REFERENCES[sampler](k_diffusion.sampling, wrapped, noise() * ours.sigmas[0], sigmas, draw)
    torch.testing.assert_close(sample(ours, noise()), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_ddim_equals_diffusers_from_the_same_start(prediction: str) -> None:
    """A1111's timesteps are diffusers' "leading" ones; the last step of theirs goes to the first alpha, ours to 0."""
    config = {**SD1, "prediction_type": prediction, "clip_sample": False, "steps_offset": 1, "set_alpha_to_one": True}
    theirs = DDIMScheduler(**config, timestep_spacing="leading")
    theirs.set_timesteps(20)
    expected = noise()
    for timestep in theirs.timesteps:
        expected = theirs.step(model(expected, timestep), timestep, expected).prev_sample
    ours = exact(scheduler_for("DDIM", "DDIM", 20, prediction_type=prediction))
    torch.testing.assert_close(
        sample(ours, noise()), expected.double(), rtol=1e-4, atol=2e-5 * float(expected.abs().max())
    )


def test_lcm_noises_the_models_guess_anew() -> None:
    scheduler = exact(scheduler_for("LCM", "Uniform", 4, prediction_type="sample"))
    latents = noise() * scheduler.init_noise_sigma
    guess = noise(5)
    generators = [torch.Generator().manual_seed(s) for s in (1, 2)]
    stepped = scheduler.step(guess, scheduler.timesteps[0], latents, generators).prev_sample
    fresh = torch.cat(
        [torch.randn((1, *SHAPE[1:]), generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in (1, 2)]
    )
    torch.testing.assert_close(stepped, guess + fresh * scheduler.sigmas[1])


def test_flow_prediction_in_sigma_space_is_the_rectified_flow() -> None:
    theirs = FlowMatchEulerDiscreteScheduler()
    theirs.set_timesteps(sigmas=[0.95, 0.7, 0.4, 0.1])
    x = expected = noise()
    levels = [s / (1 - s) for s in theirs.sigmas.double().tolist()]
    flow = PREDICTIONS["flow_prediction"]
    x = x * (1 + levels[0])
    for timestep, (sigma, following) in zip(theirs.timesteps, pairwise(levels), strict=True):
        expected = theirs.step(model(expected, timestep), timestep, expected).prev_sample.double()
        denoised = flow.denoised(x, model(x * flow.scale(sigma), timestep), sigma)
        x = torch.lerp(denoised, x, following / sigma)
    torch.testing.assert_close(x, expected, rtol=1e-5, atol=1e-5)


def test_every_sampler_with_every_schedule_gives_a_picture_of_its_own() -> None:
    found = {(a, b): sample(scheduler_for(a, b, 6), noise().float()) for a in SAMPLERS for b in SCHEDULES}
    assert all(torch.isfinite(latents).all() for latents in found.values())
    same = {frozenset((a, b)) for a in found for b in found if a != b and torch.equal(found[a], found[b])}
    assert not same


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_generator_for_each_image_makes_the_batch_not_matter(sampler: str) -> None:
    together = sample(scheduler_for(sampler, "Uniform", 5), noise())
    for i, seed in enumerate((1, 2)):
        alone = sample(scheduler_for(sampler, "Uniform", 5), noise()[i : i + 1], [seed])
        torch.testing.assert_close(alone[0], together[i])


def test_the_last_steps_alone_start_in_mid_schedule() -> None:
    whole, part = scheduler_for("DPM++ 2M", "Karras", 20), scheduler_for("DPM++ 2M", "Karras", 20, last=16)
    assert part.sigmas == whole.sigmas[-17:]
    assert len(part.timesteps) == 16
    assert part.init_noise_sigma == part.sigmas[0]


def test_the_noise_level_is_known_after_each_step() -> None:
    scheduler = scheduler_for("Euler a", "Karras", 5)
    latents, levels = noise() * scheduler.init_noise_sigma, [scheduler.sigma]
    for timestep in scheduler.timesteps:
        latents = scheduler.step(model(latents, timestep), timestep, latents).prev_sample
        levels.append(scheduler.sigma)
    assert tuple(levels) == scheduler.sigmas


def test_latents_changed_between_two_steps_are_the_ones_gone_on_with() -> None:
    scheduler = scheduler_for("Euler", "Karras", 3, prediction_type="sample")
    latents = noise() * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        latents = torch.zeros_like(latents)
        latents = scheduler.step(torch.ones_like(latents), timestep, latents).prev_sample
    torch.testing.assert_close(latents, torch.ones_like(latents))


def test_a_second_order_sampler_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heun's two model calls per step fit into the protocol without a change to the scheduler."""

    def heun(x: Tensor, sigmas: Sequence[float], noise: Any) -> Any:
        for sigma, following in pairwise(sigmas):
            start, denoised = yield x, sigma
            slope = (start - denoised) / sigma
            x = start + slope * (following - sigma)
            if following:
                ahead, denoised = yield x, following
                x = start + (slope + (ahead - denoised) / following) / 2 * (following - sigma)
        return x

    import backend.diffusion.samplers as module

    monkeypatch.setattr(module, "SAMPLERS", {**SAMPLERS, "Heun": module.Sampler(heun, order=2)})
    scheduler = scheduler_for("Heun", "Karras", 4)
    assert len(scheduler.timesteps) == 7
    assert scheduler.order == 2
    assert scheduler.times[1] == scheduler.times[2]
    assert torch.isfinite(sample(scheduler, noise())).all()


def test_add_noise_is_in_sigma_space() -> None:
    scheduler = scheduler_for("Euler", "Uniform", 4)
    noised = scheduler.add_noise(torch.zeros(SHAPE), torch.ones(SHAPE), scheduler.timesteps[1:2])
    torch.testing.assert_close(noised, torch.full(SHAPE, scheduler.sigmas[1]))


def test_unknown_predictions_and_betas_are_refused() -> None:
    with pytest.raises(ValueError, match="prediction_type 'karma' is unknown"):
        from_config({**SD1, "prediction_type": "karma"})
    with pytest.raises(ValueError, match="beta_schedule 'odd' is unknown"):
        from_config({"beta_schedule": "odd"})


def test_a_table_goes_no_further_than_its_ends() -> None:
    table = SigmaTable([0.1, 1.0, 10.0])
    assert (table.time(0.01), table.time(100.0)) == (0, 2)
    assert table.time(table.sigma(0.5)) == pytest.approx(0.5)


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_what_the_model_saw_may_be_revised_before_the_sampler_goes_by_it(name: str) -> None:
    scheduler = scheduler_for(name, "Karras", 6)
    plain = sample(scheduler, noise())
    aim = torch.full(SHAPE, 0.5, dtype=torch.float64)
    asked: list[float] = []

    def revise(denoised: Tensor, sigma: float) -> Tensor:
        asked.append(sigma)
        return torch.cat([aim[..., :4], denoised[..., 4:]], dim=-1)

    scheduler.set_timesteps(6)
    with scheduler.revised(revise):
        revised = sample(scheduler, noise())
    assert asked == list(scheduler.sigmas[:-1])
    torch.testing.assert_close(revised[..., :4], aim[..., :4])
    assert not torch.allclose(revised[..., 4:], plain[..., 4:])
    scheduler.set_timesteps(6)
    assert torch.equal(sample(scheduler, noise()), plain)  # and it is undone
