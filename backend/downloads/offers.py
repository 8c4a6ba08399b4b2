"""Three open models to begin with, by what a machine can hold. They are offered; nothing is fetched unasked."""

from typing import NamedTuple

GIB = 2**30


class Offer(NamedTuple):
    source: str
    """What `sources.look` is told."""
    key: str
    """Which option there; empty: the whole folder."""
    title: str
    family: str
    size: int
    """Bytes to fetch, about."""
    memory: int
    """Bytes of a graphics card with which it is comfortable."""
    licence: str
    about: str
    """A key of the words on the page."""


OFFERS = (
    Offer(
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "v1-5-pruned-emaonly.safetensors",
        "Stable Diffusion 1.5",
        "sd1",
        4_265_146_304,
        4 * GIB,
        "CreativeML OpenRAIL-M",
        "offer.sd1",
    ),
    Offer(
        "stabilityai/stable-diffusion-xl-base-1.0",
        "sd_xl_base_1.0.safetensors",
        "SDXL 1.0",
        "sdxl",
        6_938_078_334,
        8 * GIB,
        "CreativeML OpenRAIL++-M",
        "offer.sdxl",
    ),
    Offer(
        "black-forest-labs/FLUX.1-schnell",
        "",
        "Flux.1 schnell",
        "flux",
        34 * 10**9,
        16 * GIB,
        "Apache 2.0",
        "offer.flux",
    ),
)
"""The first suits every machine."""


def best(memory: int) -> Offer:
    """The one that suits a machine with so many bytes on its card, or in half its memory without one."""
    fitting = [offer for offer in OFFERS if offer.memory <= memory]
    return fitting[-1] if fitting else OFFERS[0]
