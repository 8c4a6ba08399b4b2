"""Doing what a recipe says: each tensor of the first model is read, changed and written, one after the other."""

import json
import os
import secrets
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backend.catalog import sidecars
from backend.consents import is_pickle
from backend.errors import Conflict, InvalidRequest, ModelBroken, Problem
from backend.files import write_atomically
from backend.lora import network
from backend.lora.blocks import USUAL, by_block
from backend.merging import formulas, layouts, modules, provenance
from backend.merging.recipe import (
    AddDifference,
    AddLora,
    BakeVae,
    Convert,
    ExtractLora,
    Recipe,
    WeightedSum,
    is_folder,
)
from backend.merging.tensors import (
    Pickle,
    Quantised,
    Spec,
    Weights,
    check_room,
    in_order,
    is_quantised,
    size_of,
    write,
)
from backend.weights import BrokenFile

PRECISIONS = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8": torch.float8_e4m3fn,
}
ALIKE = 0.98
"""How much of the one denoiser has to be in the other."""
INPUTS = ("input_blocks.0.0.weight", "conv_in.weight")
"""Where models for inpainting have more channels."""

Report = Callable[[str, float], None]
"""What is being done, and how much of it is, 0 to 1; raises to stop."""
Change = Callable[[str, Tensor], Tensor]
"""A tensor by its name, float32 if it is of floating point; what takes its place."""


def run(recipe: Recipe, out: Path, report: Report) -> None:
    """Make `out`, which is not there yet: a folder where `is_folder` says so, else a file.

    Raises AtelierError; then nothing is there.
    """
    if out.exists():
        raise Conflict(f"{out.name} is there already; choose another name")
    torch.manual_seed(0)
    out.parent.mkdir(parents=True, exist_ok=True)
    with torch.inference_mode(), ExitStack() as opened:
        match recipe:
            case WeightedSum():
                a, b = (opened.enter_context(Weights(model)) for model in (recipe.a, recipe.b))
                _save(a, out, recipe, _weighted_sum(recipe, a, b), report)
            case AddDifference():
                a, b, c = (opened.enter_context(Weights(model)) for model in (recipe.a, recipe.b, recipe.c))
                _save(a, out, recipe, _difference(recipe, a, b, c), report)
            case BakeVae():
                a, vae = (opened.enter_context(Weights(model)) for model in (recipe.a, recipe.vae))
                _save(a, out, recipe, _vae(a, vae), report)
            case AddLora():
                a = opened.enter_context(Weights(recipe.a))
                _save(a, out, recipe, _lora(recipe, a), report)
            case ExtractLora():
                a, b = (opened.enter_context(Weights(model)) for model in (recipe.a, recipe.b))
                _extract(recipe, a, b, out, report)
            case Convert():
                _convert(recipe, out, report, opened)


# --- the ways to merge


def _weighted_sum(recipe: WeightedSum, a: Weights, b: Weights) -> Change:
    _check_alike(a, b, "b")
    share_of = _shares(recipe.share, recipe.blocks, a)

    def change(name: str, own: Tensor) -> Tensor:
        if name not in b or not own.is_floating_point():
            return own
        return _within(own, b.read(name).float(), lambda x, y: formulas.weighted_sum(x, y, share_of(name)))

    return change


def _difference(recipe: AddDifference, a: Weights, b: Weights, c: Weights) -> Change:
    _check_alike(a, b, "b")
    _check_alike(a, c, "c")
    _check_alike(b, c, "c")
    _check_alike(c, b, "c")  # neither has channels that the other lacks
    share_of = _shares(recipe.share, recipe.blocks, a)

    def change(name: str, own: Tensor) -> Tensor:
        if name not in b or name not in c or not own.is_floating_point():
            return own
        difference = b.read(name).float() - c.read(name).float()
        return _within(own, difference, lambda x, y: formulas.add_difference(x, y, share_of(name)))

    return change


def _vae(a: Weights, vae: Weights) -> Change:
    """Whichever of the two ways to name its parts each has."""
    own = {at.name: name for name in a.places if (at := modules.home(a, name)).component == "vae"}
    theirs = {
        at.name: name for name in vae.places if (at := modules.home(vae, name)).component == "vae" or _is_vae(at.name)
    }
    if not own:
        raise _unlike("a", f"{a.model.name} has no VAE that another one could replace")
    ours, their = modules.vae_names(own), modules.vae_names(theirs)
    sources = {ours_name: theirs[name] for name, ours_name in their.items()}
    found = {full: sources.get(ours[name], "") for name, full in own.items()}
    lacking = [full for full, source in found.items() if not source or _count(vae, source) != _count(a, full)]
    if lacking:
        raise _unlike(
            "vae", f"{vae.model.name} is no VAE for {a.model.name}: {lacking[0]} is not in it, or of another size"
        )

    def change(name: str, own: Tensor) -> Tensor:
        return vae.read(found[name]).view(own.shape) if name in found else own

    return change


def _is_vae(name: str) -> bool:
    return name.startswith(("encoder.", "decoder.", "quant_conv.", "post_quant_conv."))


def _count(weights: Weights, name: str) -> int:
    return torch.Size(weights.shape(name)).numel()


def _lora(recipe: AddLora, a: Weights) -> Change:
    try:
        of_file = network.read(recipe.lora.path)
    except BrokenFile as error:
        raise ModelBroken(f"{recipe.lora.name} {error}") from None
    if not of_file.pieces:
        raise _unlike("lora", f"{recipe.lora.name} holds no LoRA")
    there = modules.parts(a)
    if strange := [module for module in of_file.pieces if module not in there]:
        more = f" and {len(strange) - 3} more" if len(strange) > 3 else ""
        named = ", ".join("_".join(module)[:100] for module in strange[:3])
        raise _unlike("lora", f"{recipe.lora.name} has parts that {a.model.name} has no place for: {named}{more}")
    factor_of = _factors(recipe.blocks)
    changes: dict[str, list[tuple[network.Piece, modules.Part, float]]] = defaultdict(list)
    for module, piece in of_file.pieces.items():
        part = there[module]
        by = recipe.share * factor_of(part.block)
        shape = _part_shape(a, part)
        try:
            network.check_fit(piece, torch.empty(shape, device="meta"))
        except ValueError as error:
            raise _unlike("lora", f"{recipe.lora.name} does not fit {a.model.name}: its {module[1]} {error}") from None
        if piece.changes_weight:
            changes[part.tensor].append((piece, part, by))
        if piece.changes_bias:
            bias = part.tensor.removesuffix("weight") + "bias"
            if bias not in a or a.shape(bias)[0] != len(network.bias(piece)) or part.rows:
                raise _unlike("lora", f"{recipe.lora.name} changes a bias that {a.model.name} does not have")
            changes[bias].append((piece, part, by))

    def change(name: str, own: Tensor) -> Tensor:
        if name not in changes:
            return own
        numbers = own.clone()
        for piece, part, by in changes[name]:
            turn = part.turn or torch.clone
            if name != part.tensor:
                numbers += by * turn(network.bias(piece))
                continue
            rows = part.rows or slice(None)
            numbers[rows] = turn(network.add(turn(numbers[rows]), piece, by, turn(own[rows])))
        return numbers

    return change


def _part_shape(weights: Weights, part: modules.Part) -> tuple[int, ...]:
    shape = weights.shape(part.tensor)
    if part.turn:
        return tuple(part.turn(torch.empty(shape, device="meta")).shape)
    return (part.rows.stop - part.rows.start, *shape[1:]) if part.rows else shape


# --- taking a LoRA out


def _extract(recipe: ExtractLora, a: Weights, b: Weights, out: Path, report: Report) -> None:
    _check_alike(a, b, "b")
    pieces = {
        key: part for key, part in modules.kohya(a).items() if part.tensor in b and not _is_embedding(part.tensor)
    }
    tensors = sorted({part.tensor for part in pieces.values()})
    changed = set()
    for number, name in enumerate(tensors):
        report("comparing", 0.3 * number / len(tensors))
        if a.shape(name) != b.shape(name):
            raise _unlike("b", _shapes_differ(a, b, name))
        if not torch.equal(a.read(name).float(), b.read(name).float()):
            changed.add(name)
    pieces = {key: part for key, part in pieces.items() if part.tensor in changed}
    if not pieces:
        raise _unlike("b", f"{a.model.name} and {b.model.name} have the same weights: there is nothing to extract")
    dtype = PRECISIONS[recipe.precision or "fp16"]
    specs = [
        spec
        for key, part in sorted(pieces.items())
        for spec in _lora_specs(key, _part_shape(a, part), recipe.rank, dtype)
    ]

    def tensors_of() -> Iterator[Tensor]:
        for number, (key, part) in enumerate(sorted(pieces.items())):
            report("extracting", 0.3 + 0.7 * number / len(pieces))
            rows = part.rows or slice(None)
            difference = b.read(part.tensor).float()[rows] - a.read(part.tensor).float()[rows]
            up, down = formulas.low_rank(difference.flatten(1), recipe.rank)
            shapes = {
                spec.name.removeprefix(key): spec.shape
                for spec in _lora_specs(key, difference.shape, recipe.rank, dtype)
            }
            yield torch.tensor(float(len(down)))
            yield down.reshape(shapes[".lora_down.weight"])
            yield up.reshape(shapes[".lora_up.weight"])

    said = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(recipe.rank),
        "ss_network_alpha": str(recipe.rank),
        "ss_output_name": out.stem,
        "ss_sd_model_name": a.model.name,
        "ss_base_model_version": {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}.get(a.model.family, ""),
    }
    write(out, specs, {**provenance.of(recipe, out.stem, {}), **said}, tensors_of())


def _lora_specs(key: str, shape: tuple[int, ...], rank: int, dtype: torch.dtype) -> list[Spec]:
    outs, ins, *kernel = shape
    rank = min(rank, outs, ins * torch.Size(kernel).numel())
    ones = (1,) * len(kernel)
    return [
        Spec(f"{key}.alpha", dtype, ()),
        Spec(f"{key}.lora_down.weight", dtype, (rank, ins, *kernel)),
        Spec(f"{key}.lora_up.weight", dtype, (outs, rank, *ones)),
    ]


def _is_embedding(name: str) -> bool:
    return "embedding" in name and "time_embedding" not in name and "add_embedding" not in name


# --- converting


def _convert(recipe: Convert, out: Path, report: Report, opened: ExitStack) -> None:
    kinds = recipe.a.path.is_dir(), is_folder(recipe)
    how = Pickle if is_pickle(recipe.a.path) else Quantised if is_quantised(recipe.a.path) else Weights
    if how is not Weights and kinds[1]:
        kind = "pickle" if how is Pickle else "GGUF file"
        raise Conflict(f"{recipe.a.name} is a {kind}: make a safetensors file of it first")
    if kinds[0] == kinds[1]:
        source: Weights = opened.enter_context(how(recipe.a))
        _save(source, out, recipe, lambda _, own: own, report)
        return
    change = layouts.to_folder if kinds[1] else layouts.to_file
    with _temporary(out) as made:
        change(recipe.a, made, PRECISIONS.get(recipe.precision), report)


# --- writing


def _save(a: Weights, out: Path, recipe: Recipe, change: Change, report: Report) -> None:
    """`out` in the layout of A, with every tensor changed."""
    prune = not isinstance(recipe, Convert) or recipe.prune
    names = [name for name in a.places if not (prune and name.startswith(modules.EMA))]
    specs = {name: Spec(a.places[name].key, _dtype(recipe, a, name), a.shape(name)) for name in names}
    metadata = a.metadata if isinstance(recipe, Convert) else provenance.of(recipe, out.stem, a.metadata)
    whose = a.model.name if isinstance(recipe, Convert) else out.stem  # it may be B's number that is wrong
    total = sum(torch.Size(spec.shape).numel() for spec in specs.values())
    done = 0

    def made(names: Iterable[str]) -> Iterator[Tensor]:
        nonlocal done
        for name in names:
            report("writing", done / max(1, total))
            own = a.read(name)
            new = change(name, own.float() if own.is_floating_point() else own)
            yield _narrowed(new, specs[name].dtype, f"{whose}'s {name}")
            done += own.numel()

    def write_file(path: Path, names: Iterable[str], metadata: Mapping[str, str]) -> None:
        ordered = in_order((name, specs[name]) for name in names)
        write(path, [specs[name] for name in ordered], metadata, made(ordered))

    if not a.is_folder:
        write_file(out, names, metadata)
        return
    by_file: dict[Path, list[str]] = defaultdict(list)
    for name in names:
        by_file[a.places[name].file].append(name)
    check_room(out.parent, size_of(a.model.path))
    with _temporary(out) as folder:
        _copy_texts(a.model.path, folder, {"title": out.name})
        for file, inside in by_file.items():
            path = folder / file.relative_to(a.model.path)
            path.parent.mkdir(exist_ok=True)
            write_file(path, inside, {})
        if metadata:
            write_atomically(folder / "merge.json", json.dumps(metadata, indent=2).encode())


def _dtype(recipe: Recipe, a: Weights, name: str) -> torch.dtype:
    """fp8 is for the matrices of denoiser and text encoders alone; what else there is stays at half."""
    given = a.dtype(name)
    if not given.is_floating_point or not recipe.precision:
        return given
    if recipe.precision != "fp8":
        return PRECISIONS[recipe.precision]
    is_matrix = len(a.shape(name)) > 1 and modules.home(a, name).component != "vae" and not _is_embedding(name)
    return PRECISIONS["fp8"] if is_matrix else torch.float16 if given.itemsize > 2 else given


def _narrowed(numbers: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    if numbers.dtype == dtype or not numbers.is_floating_point():
        return numbers
    largest = torch.finfo(dtype).max
    narrow = numbers.clamp(-largest, largest).to(dtype) if dtype.itemsize == 1 else numbers.to(dtype)
    if dtype.itemsize < numbers.dtype.itemsize and not torch.isfinite(narrow.float()).all():
        reason = (
            "is not finite" if not torch.isfinite(numbers).all() else f"is too large for {dtype}; take bf16 or fp32"
        )
        raise ModelBroken(f"{name} has a number that {reason}")
    return narrow


@contextmanager
def _temporary(out: Path) -> Iterator[Path]:
    """What takes the place of `out` when all went well; a folder if that is what is made there."""
    temporary = out.with_name(f".{out.name}.{secrets.token_hex(4)}.tmp")
    try:
        if out.suffix != ".safetensors":
            temporary.mkdir()
        yield temporary
        os.replace(temporary, out)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def _copy_texts(source: Path, target: Path, card: Mapping[str, Any]) -> None:
    """All but the weights, which are made anew, and but code, which no model needs."""
    for path in [*source.glob("*"), *source.glob("*/*")]:
        if path.is_file() and path.suffix in (".json", ".txt", ".model") and path.name != "merge.json":
            place = target / path.relative_to(source)
            place.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, place)
    with suppress(ValueError):  # the catalogue says what is wrong with A's
        card = {**sidecars.card(sidecars.card_of(source)), **card}
    write_atomically(sidecars.card_of(target), json.dumps(card, ensure_ascii=False, indent=2).encode())


# --- shares


def _shares(share: float, blocks: str, a: Weights) -> Callable[[str], float]:
    """How much of B each tensor gets."""
    if not blocks:
        return lambda name: share
    factor_of, in_block = _factors(blocks), modules.blocks(a)
    return lambda name: factor_of(in_block[name]) if name in in_block else share


def _factors(blocks: str) -> Callable[[str], float]:
    if not blocks:
        return lambda block: 1.0
    try:
        factors = by_block(blocks, USUAL)
    except ValueError as error:
        raise InvalidRequest(Problem("blocks", str(error))) from None
    return lambda block: factors.get(block, 1.0)


def _within(own: Tensor, other: Tensor, formula: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The formula; where `own` has the further channels of an inpainting model, on those that `other` has."""
    if own.shape == other.shape:
        return formula(own, other)
    channels = other.shape[1]
    return torch.cat([formula(own[:, :channels], other), own[:, channels:]], dim=1)


# --- what goes together


def _check_alike(a: Weights, b: Weights, field: str) -> None:
    """Raises InvalidRequest with both names unless they are of one family and layout."""
    names = f"{a.model.name} and {b.model.name}"
    if a.is_folder != b.is_folder:
        folder, file = (a, b) if a.is_folder else (b, a)
        raise _unlike(
            field, f"{folder.model.name} is a folder and {file.model.name} a file: convert one to the other's layout"
        )
    families = a.model.family, b.model.family
    if all(families) and families[0] != families[1]:
        raise _unlike(field, f"{names} are of different families: {families[0]} and {families[1]}")
    own = [name for name in a.places if modules.home(a, name).component == "unet"]
    if not own or sum(name in b for name in own) < ALIKE * len(own):
        raise _unlike(field, f"{names} are not of one family: the weights of their denoisers have other names")
    for name in a.places:
        if name in b and a.shape(name) != b.shape(name) and not _is_wider_input(a, b, name):
            raise _unlike(field, _shapes_differ(a, b, name))


def _is_wider_input(a: Weights, b: Weights, name: str) -> bool:
    ours, theirs = a.shape(name), b.shape(name)
    is_input = modules.home(a, name).component == "unet" and name.endswith(INPUTS)
    return is_input and len(ours) == len(theirs) == 4 and ours[1] > theirs[1] == 4 and ours[0] == theirs[0]


def _shapes_differ(a: Weights, b: Weights, name: str) -> str:
    return (
        f"{a.model.name} and {b.model.name} do not go together: {name} has the shape {list(a.shape(name))} in the one"
        f" and {list(b.shape(name))} in the other"
    )


def _unlike(field: str, message: str) -> InvalidRequest:
    return InvalidRequest(Problem(field, message))
