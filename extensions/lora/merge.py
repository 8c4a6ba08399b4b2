"""LoRAs in a model: their parts are found in it, merged into its weights, and taken out again.

The model's own tensors are never written to: a parameter is given other numbers to hold, and its own ones back at the
end. So what is undone is undone to the bit, and a model with three LoRAs is as fast as one without, unless its weights
are quantised.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from backend.lora import fused, keys, network
from backend.lora.blocks import BASE, block_of
from backend.lora.keys import Module
from backend.lora.network import Network, Piece
from backend.packed import Blocks
from backend.weights import BrokenFile

from .tags import Use

COMPONENTS = {
    "unet": "unet",
    "transformer": "unet",
    "text_encoder": "text_encoder",
    "text_encoder_2": "text_encoder_2",
    "text_encoder_3": "text_encoder_3",
}
"""The parts of a pipeline, and what files call them: a transformer stands in the UNet's place."""
SPARE = 2 * 2**30
"""Bytes of a graphics card that are left to the picture."""


class Place(NamedTuple):
    """A module of the model that a LoRA may change."""

    name: str
    module: torch.nn.Module
    block: str
    rows: tuple[tuple[range, ...], int] | None = None
    """Which, and of how many, where a file has one piece for several modules, or the rows in another order."""

    def of(self, piece: Piece) -> Piece:
        """What of a piece is this place's."""
        return piece.rows(*self.rows) if self.rows else piece


class Change(NamedTuple):
    """What one LoRA does to one parameter."""

    piece: Piece
    by: float
    rank: int | None
    is_bias: bool


Changes = Mapping[Parameter, tuple[Change, ...]]


class Places(NamedTuple):
    """Where the parts of files belong in a pipeline."""

    by_name: Mapping[Module, tuple[Place, ...]]
    """Its modules by every name that files have for them; some names are of several."""
    left_out: frozenset[str]
    """Components that it could have and does not, such as the T5 of Stable Diffusion 3."""


def places(pipeline: Any) -> Places:
    found: dict[Module, tuple[Place, ...]] = {}
    left_out: set[str] = set()
    for attribute, component in COMPONENTS.items():
        if not hasattr(pipeline, attribute):
            continue
        whole = getattr(pipeline, attribute)
        if whole is None:
            left_out.add(component)
            continue
        modules = {name: m for name, m in whole.named_modules() if isinstance(getattr(m, "weight", None), Parameter)}
        ldm = keys.ldm_names([name for name, _ in whole.named_modules()]) if attribute == "unet" else {}
        for name, module in modules.items():
            block = BASE if component != "unet" else block_of(ldm.get(name, ""))
            for spelling in keys.spellings(component, name, ldm.get(name, "")):
                found[spelling] = (Place(f"{attribute}.{name}", module, block),)
        if attribute == "transformer":
            found |= dict(_originals(modules))
    return Places(found, frozenset(left_out))


def _originals(modules: Mapping[str, Any]) -> Iterator[tuple[Module, tuple[Place, ...]]]:
    """A transformer's modules by their names in the original code."""

    def place(part: str, rows: tuple[tuple[range, ...], int] | None) -> Place:
        return Place(f"transformer.{part}", modules[part], "", rows)

    for name, parts in {**fused.original_names(modules), **fused.xlabs_names(modules)}.items():
        ends = [0, *accumulate(len(modules[part].weight) for part in parts)]
        rows = [((range(start, stop),), ends[-1]) for start, stop in pairwise(ends)] if parts[1:] else [None]
        yield ("unet", name.replace(".", "_")), tuple(map(place, parts, rows))
    for name, part in fused.swapped_names(modules).items():
        count = len(modules[part].weight)
        halves = range(count // 2, count), range(count // 2)
        yield ("unet", name.replace(".", "_")), (place(part, (halves, count)),)


def changes(loaded: Sequence[tuple[Use, Network]], there: Places) -> Changes:
    """What these do to the parameters of a model, each in turn; whatever has the weight 0 is left out."""
    found: dict[Parameter, list[Change]] = defaultdict(list)
    for use, of_file in loaded:
        for module, place, piece in _placed(of_file, there):
            of_part = use.unet if module[0] == "unet" else use.te
            by = of_part * use.blocks.get(place.block, 1.0)
            if by == 0:
                continue
            if piece.changes_weight:
                found[_weight(place)].append(Change(piece, by, use.rank, False))
            if piece.changes_bias:
                found[place.module.bias].append(Change(piece, by, use.rank, True))  # type: ignore[index]
    return {parameter: tuple(given) for parameter, given in found.items()}


def check(of_file: Network, there: Places) -> None:
    """Raises BrokenFile if the file holds what the model has no place for."""
    unknown = (module for module in of_file.pieces if module not in there.by_name)
    if strange := [module for module in unknown if module[0] not in there.left_out]:
        named = ", ".join("_".join(module)[:100] for module in strange[:3])
        more = f" and {len(strange) - 3} more" if len(strange) > 3 else ""
        raise BrokenFile(f"has parts that this model has no place for: {named}{more}")
    for _, place, piece in _placed(of_file, there):
        try:
            network.check_fit(piece, _outline(_weight(place)))
            if piece.changes_bias and (
                place.module.bias is None or place.module.bias.shape != network.bias(piece).shape
            ):
                raise ValueError("changes a bias that the model does not have")
        except ValueError as error:
            raise BrokenFile(f"does not fit: its part for {place.name} {error}") from None


def _placed(of_file: Network, there: Places) -> Iterator[tuple[Module, Place, Piece]]:
    for module, piece in of_file.pieces.items():
        for place in there.by_name.get(module, ()):
            yield module, place, place.of(piece)


def _weight(place: Place) -> Parameter:
    weight = place.module.weight
    assert isinstance(weight, Parameter)
    return weight


def _outline(weight: Parameter) -> Tensor:
    """Something of a weight's shape."""
    return torch.empty(weight.quant_shape, device="meta") if isinstance(weight, Blocks) else weight


class Merged:
    """The parameters of a model that hold other numbers than their own, or that become others when they are used."""

    def __init__(self) -> None:
        self._own: dict[Parameter, Tensor] = {}
        self._made: dict[Parameter, tuple[tuple[Change, ...], Tensor]] = {}
        """What was merged last, for the next batch with the same changes."""
        self._in_blocks: set[Blocks] = set()
        """Weights that are quantised: nothing can be merged into them, it is each time that they are made whole."""

    def put(self, wanted: Changes) -> None:
        """These changes and no others; what holds already stays."""
        with torch.inference_mode(False), torch.no_grad():
            for parameter in self._own.keys() - wanted.keys():
                self._restore(parameter)
            for parameter in self._in_blocks - wanted.keys():
                self._leave(parameter)
            for parameter, given in wanted.items():
                if isinstance(parameter, Blocks):
                    parameter.change = partial(merged, given=given)
                    self._in_blocks.add(parameter)
                    continue
                made, numbers = self._made.get(parameter, ((), None))
                if made != given or numbers is None:
                    own = self._own.get(parameter, parameter.data)
                    numbers = merged(own.to(parameter.device), given)
                    self._made[parameter] = given, numbers
                if parameter not in self._own:
                    self._own[parameter] = _aside(parameter.data)
                parameter.data = numbers

    def undo(self, keep: bool = False) -> None:
        """Everything as it was; `keep`: what was merged is remembered for the next time."""
        for parameter in list(self._own):
            self._restore(parameter)
        for parameter in list(self._in_blocks):
            self._leave(parameter)
        if not keep:
            self._made.clear()

    def _leave(self, parameter: Blocks) -> None:
        parameter.change = None
        self._in_blocks.discard(parameter)

    def _restore(self, parameter: Parameter) -> None:
        parameter.data = self._own.pop(parameter).to(parameter.device)


def merged(own: Tensor, given: Sequence[Change]) -> Tensor:
    """A parameter's numbers with all changes, in its own precision; `own` is not written to."""
    original = own.float()
    numbers = original
    for piece, by, rank, is_bias in given:
        if is_bias:
            numbers = numbers + by * network.bias(piece).to(numbers.device)
        else:
            numbers = network.add(numbers, piece, by, original, rank)
    return _in_eight_bits(numbers, own) if own.dtype == torch.float8_e4m3fn else numbers.to(own.dtype)


def _in_eight_bits(numbers: Tensor, own: Tensor) -> Tensor:
    """Up or down by chance: to the nearest, nearly all would be what they were, as changes are smaller than a step.

    The chances follow from the model's own numbers, so that they are the same each time.
    """
    chance = torch.Generator(numbers.device).manual_seed(int(own.view(torch.uint8).sum()))
    _, exponent = torch.frexp(numbers)
    step = torch.exp2((exponent.clamp(min=-5) - 4).float())  # three bits of mantissa, and none below 2 ** -6
    drawn = torch.rand(numbers.shape, generator=chance, device=numbers.device)
    limit = torch.finfo(own.dtype).max
    return torch.floor(numbers / step + drawn).mul_(step).clamp_(-limit, limit).to(own.dtype)


def _aside(numbers: Tensor) -> Tensor:
    """A model's own numbers while others take their place; off the card where it is short of room."""
    if numbers.device.type == "cuda" and torch.cuda.mem_get_info(numbers.device)[0] < SPARE:
        return numbers.cpu()
    return numbers
