"""LoRA files of random numbers, in every format, for whatever modules a model has.

PYTEST_DONT_REWRITE: test modules import it before pytest could.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

RANK = 3
ALPHA = 1.5
Tensors = dict[str, Tensor]
Delta = Callable[[Tensor, Tensors], Tensor]
"""From a weight and the tensors of its module, by their kohya names, what is added at weight 1."""


def noise(*shape: int, by: float = 0.3) -> Tensor:
    return torch.randn(shape) * by


def lora(weight: Tensor) -> Tensors:
    out, into, *kernel = weight.shape
    down, up = noise(RANK, into, *kernel), noise(out, RANK, *([1] * len(kernel)))
    return {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(ALPHA)}


def of_lora(weight: Tensor, t: Tensors) -> Tensor:
    down, up = t["lora_down.weight"], t["lora_up.weight"]
    product = torch.einsum("or,r...->o...", up.reshape(up.shape[:2]), down)
    return product * (ALPHA / RANK)


def locon_split(weight: Tensor) -> Tensors:
    """With a core: LoCon as LyCORIS writes it with `use_tucker`."""
    if weight.dim() == 2 or weight.shape[-1] == 1:
        return lora(weight)
    out, into, *kernel = weight.shape
    down, mid, up = noise(RANK, into, 1, 1), noise(RANK, RANK, *kernel), noise(out, RANK, 1, 1)
    given = {"lora_down.weight": down, "lora_mid.weight": mid, "lora_up.weight": up}
    return {**given, "alpha": torch.tensor(ALPHA)}


def of_locon_split(weight: Tensor, t: Tensors) -> Tensor:
    if "lora_mid.weight" not in t:
        return of_lora(weight, t)
    up, mid, down = t["lora_up.weight"], t["lora_mid.weight"], t["lora_down.weight"]
    inner = torch.nn.functional.conv2d(mid.transpose(0, 1), up.permute(0, 1, 2, 3), bias=None)  # (into r, out, k, k)
    return torch.einsum("rokl,ri->oikl", inner, down[:, :, 0, 0]) * (ALPHA / RANK)


def loha(weight: Tensor) -> Tensors:
    out, flat = weight.shape[0], weight[0].numel()
    sizes = {"hada_w1_a": (out, RANK), "hada_w1_b": (RANK, flat), "hada_w2_a": (out, RANK), "hada_w2_b": (RANK, flat)}
    return {**{name: noise(*size) for name, size in sizes.items()}, "alpha": torch.tensor(ALPHA)}


def of_loha(weight: Tensor, t: Tensors) -> Tensor:
    first, second = t["hada_w1_a"] @ t["hada_w1_b"], t["hada_w2_a"] @ t["hada_w2_b"]
    return (first * second).view(weight.shape) * (ALPHA / RANK)


def lokr(weight: Tensor) -> Tensors:
    """One factor whole, the other a product; 2 x 2 and what is left."""
    out, into, *kernel = weight.shape
    b = noise(RANK, into // 2 if into % 2 == 0 else into, *kernel)
    first = noise(2, 2 if into % 2 == 0 else 1)
    return {"lokr_w1": first, "lokr_w2_a": noise(out // 2, RANK), "lokr_w2_b": b, "alpha": torch.tensor(ALPHA)}


def of_lokr(weight: Tensor, t: Tensors) -> Tensor:
    second = torch.einsum("or,r...->o...", t["lokr_w2_a"], t["lokr_w2_b"])
    first = t["lokr_w1"]
    delta = torch.zeros(weight.shape)
    for i in range(first.shape[0]):
        for j in range(first.shape[1]):
            rows = slice(i * second.shape[0], (i + 1) * second.shape[0])
            columns = slice(j * second.shape[1], (j + 1) * second.shape[1])
            delta[rows, columns] = first[i, j] * second
    return delta * (ALPHA / RANK)


def dora(weight: Tensor) -> Tensors:
    """By row, as peft has it."""
    magnitude = weight.flatten(1).norm(dim=1) * (1 + noise(weight.shape[0]).abs())
    return {**lora(weight), "dora_scale": magnitude.view(-1, *[1] * (weight.dim() - 1))}


def of_dora(weight: Tensor, t: Tensors) -> Tensor:
    moved = weight + of_lora(weight, t)
    rows = [t["dora_scale"].flatten()[n] * moved[n] / moved[n].norm() for n in range(len(moved))]
    return torch.stack(rows) - weight


def dora_by_column(weight: Tensor) -> Tensors:
    magnitude = weight.transpose(0, 1).flatten(1).norm(dim=1) * 1.5
    return {**lora(weight), "dora_scale": magnitude.view(1, -1, *[1] * (weight.dim() - 2))}


def of_dora_by_column(weight: Tensor, t: Tensors) -> Tensor:
    moved = (weight + of_lora(weight, t)).transpose(0, 1)
    columns = [t["dora_scale"].flatten()[n] * moved[n] / moved[n].norm() for n in range(len(moved))]
    return torch.stack(columns).transpose(0, 1) - weight


def full(weight: Tensor) -> Tensors:
    return {"diff": noise(*weight.shape)}


def ia3(weight: Tensor) -> Tensors:
    return {"weight": noise(weight.shape[0], 1), "on_input": torch.tensor(False)}


FORMATS: Mapping[str, tuple[Callable[[Tensor], Tensors], Delta]] = {
    "lora": (lora, of_lora),
    "locon": (lora, of_lora),
    "locon-split": (locon_split, of_locon_split),
    "loha": (loha, of_loha),
    "lokr": (lokr, of_lokr),
    "dora": (dora, of_dora),
    "dora-by-column": (dora_by_column, of_dora_by_column),
    "full": (full, lambda weight, t: t["diff"]),
    "ia3": (ia3, lambda weight, t: weight * t["weight"].view(-1, *[1] * (weight.dim() - 1))),
}
WITHOUT_CONVOLUTIONS = ("lora",)


def modules(component: Any, convolutions: bool) -> dict[str, nn.Linear | nn.Conv2d]:
    """Those that kohya's scripts train: attention and feed-forward, and all convolutions if asked for."""
    attends = ("attentions.", "self_attn.", "mlp.")
    return {
        name: module
        for name, module in component.named_modules()
        if (isinstance(module, nn.Linear) and any(part in name for part in attends))
        or (isinstance(module, nn.Conv2d) and (convolutions or "attentions." in name))
    }


def components(pipeline: Any) -> dict[str, Any]:
    names = ("unet", "text_encoder", "text_encoder_2")
    return {name: getattr(pipeline, name) for name in names if getattr(pipeline, name, None) is not None}


def kohya_prefix(component: str, pipeline: Any) -> str:
    numbered = "lora_te1_" if hasattr(pipeline, "text_encoder_2") else "lora_te_"
    return {"unet": "lora_unet_", "text_encoder": numbered, "text_encoder_2": "lora_te2_"}[component]


def kohya_name(component: str, name: str) -> str:
    if component != "unet" and not name.startswith("text_model."):
        name = f"text_model.{name}"
    return name.replace(".", "_")


def make(pipeline: Any, kind: str, seed: int = 0) -> tuple[Tensors, dict[tuple[str, str], Tensor]]:
    """A file's tensors in kohya's spelling, and what each module's weight should be at weight 1."""
    make_one, delta = FORMATS[kind]
    tensors: Tensors = {}
    wanted = {}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for component, whole in components(pipeline).items():
            for name, module in modules(whole, kind not in WITHOUT_CONVOLUTIONS).items():
                given = make_one(module.weight)
                key = kohya_prefix(component, pipeline) + kohya_name(component, name)
                tensors |= {f"{key}.{part}": tensor.contiguous() for part, tensor in given.items()}
                wanted[component, name] = module.weight + delta(module.weight, given)
    return tensors, wanted


def save(path: Path, tensors: Tensors, **metadata: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata or None)
    return path
