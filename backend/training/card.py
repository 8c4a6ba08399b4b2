"""What a LoRA says of itself: the `ss_` and `modelspec.` keys of its file, and A1111's JSON beside it; no torch.

Keys and values follow kohya-ss/sd-scripts (`train_network.py`, `sai_model_spec.py`) and the model metadata
specification of Stability AI, version 1.0.0.
"""

import base64
import io
import json
import math
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from backend import __version__
from backend.training.dataset import Dataset, Plan
from backend.training.params import TrainParams
from backend.training.records import Training

BASES = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}
ARCHITECTURES = {"sd1": "stable-diffusion-v1", "sd2": "stable-diffusion-v2-512", "sdxl": "stable-diffusion-xl-v1-base"}
VERSIONS = {"sd1": "SD1", "sd2": "SD2", "sdxl": "SDXL"}
"""As A1111's cards name them."""
THUMBNAIL = 256


class Made(NamedTuple):
    """What is known of a LoRA when it is saved."""

    training: Training
    dataset: Dataset
    plan: Plan
    step: int
    model: str
    family: str
    fingerprint: str
    """SHA-256 of the base model."""
    old_hash: str
    """A1111's first hash of its file; empty for a folder."""
    predicts_velocity: bool
    zero_snr: bool
    """Whether its last noise level is pure noise."""
    precision: str

    @property
    def params(self) -> TrainParams:
        return self.plan.params

    @property
    def licence(self) -> str:
        return self.params.licence or self.dataset.note.get("licence", "")


def metadata(made: Made, preview: Image.Image | None = None) -> dict[str, Any]:
    """Of the file; what is not known is left out."""
    return _kohya(made) | _modelspec(made, preview)


def sidecar(made: Made) -> bytes:
    """A1111's JSON beside the file, that people may edit."""
    values = {
        "description": made.params.notes,
        "sd version": VERSIONS.get(made.family, "Unknown"),
        "activation text": made.params.trigger,
        "preferred weight": 1.0,
        "negative text": "",
        "notes": _origin(made),
    }
    return json.dumps(values, indent=4, ensure_ascii=False).encode()


def thumbnail(picture: Image.Image) -> str:
    """A data URL of a small JPEG."""
    small = picture.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _kohya(made: Made) -> dict[str, Any]:
    params, plan = made.params, made.plan
    convolutions = {"conv_dim": params.rank, "conv_alpha": params.alpha}
    began = datetime.fromisoformat(made.training.started).timestamp()
    return {
        "ss_output_name": made.training.name,
        "ss_session_id": int(began),
        "ss_training_started_at": began,
        "ss_training_finished_at": datetime.now(UTC).timestamp(),
        "ss_training_comment": params.notes or None,
        "ss_sd_scripts_commit_hash": None,
        "ss_base_model_version": _base(made),
        "ss_sd_model_name": made.model,
        "ss_new_sd_model_hash": made.fingerprint,
        "ss_sd_model_hash": made.old_hash or None,
        "ss_v2": made.family == "sd2",
        "ss_network_module": "networks.lora",
        "ss_network_dim": params.rank,
        "ss_network_alpha": params.alpha,
        "ss_network_dropout": params.dropout or None,
        "ss_network_args": convolutions if params.modules == "attention_convs" else {},
        "ss_learning_rate": params.learning_rate,
        "ss_unet_lr": params.learning_rate or None,
        "ss_text_encoder_lr": params.text_encoder_lr or None,
        "ss_optimizer": f"{params.optimizer}(weight_decay={params.weight_decay})",
        "ss_lr_scheduler": params.schedule,
        "ss_lr_warmup_steps": round(params.warmup * plan.steps),
        "ss_max_train_steps": plan.steps,
        "ss_steps": made.step,
        "ss_epoch": math.ceil(plan.epochs(made.step)),
        "ss_num_epochs": math.ceil(plan.epochs(plan.steps)),
        "ss_num_train_images": sum(item.repeats for item in plan.items if not item.regular),
        "ss_num_reg_images": sum(item.repeats for item in plan.items if item.regular),
        "ss_num_batches_per_epoch": plan.batches_per_epoch,
        "ss_batch_size_per_device": params.batch_size,
        "ss_total_batch_size": params.batch_size * params.accumulation,
        "ss_gradient_accumulation_steps": params.accumulation,
        "ss_gradient_checkpointing": params.gradient_checkpointing,
        "ss_max_grad_norm": params.max_grad_norm,
        "ss_mixed_precision": made.precision,
        "ss_full_fp16": False,
        "ss_cache_latents": True,
        "ss_seed": params.seed,
        "ss_clip_skip": params.clip_skip if params.clip_skip > 1 else None,
        "ss_max_token_length": 225,
        "ss_loss_type": "l2",
        "ss_min_snr_gamma": params.min_snr_gamma or None,
        "ss_noise_offset": params.noise_offset or None,
        "ss_prior_loss_weight": params.prior_weight,
        "ss_caption_dropout_rate": params.caption_dropout,
        "ss_caption_tag_dropout_rate": 0.0,
        "ss_shuffle_caption": params.shuffle,
        "ss_keep_tokens": params.keep_tokens,
        "ss_flip_aug": params.flip,
        "ss_color_aug": False,
        "ss_random_crop": False,
        "ss_resolution": f"({params.resolution}, {params.resolution})",
        "ss_enable_bucket": params.buckets,
        "ss_bucket_no_upscale": False,
        "ss_bucket_info": _buckets(plan),
        "ss_dataset_dirs": _folders(plan),
        "ss_reg_dataset_dirs": _folders(plan, regular=True),
        "ss_datasets": [_dataset(made)],
        "ss_tag_frequency": made.dataset.tags,
        "ss_face_crop_aug_range": None,
        "ss_zero_terminal_snr": made.zero_snr,
    }


def _modelspec(made: Made, preview: Image.Image | None) -> dict[str, str]:
    architecture = ARCHITECTURES.get(made.family, ARCHITECTURES["sd1"])
    if made.family == "sd2" and made.predicts_velocity:
        architecture = architecture.replace("512", "768-v")
    values = {
        "sai_model_spec": "1.0.0",
        "architecture": f"{architecture}/lora",
        "implementation": "diffusers",
        "title": made.training.name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "author": made.params.author,
        "description": made.params.notes,
        "license": made.licence,
        "trigger_phrase": made.params.trigger,
        "usage_hint": f"<lora:{made.training.name}:1>{', ' + made.params.trigger if made.params.trigger else ''}",
        "tags": ", ".join(tag for tag, _ in _tags(made).most_common(20)),
        "resolution": f"{made.params.resolution}x{made.params.resolution}",
        "prediction_type": "v" if made.predicts_velocity else "epsilon",
        "encoder_layer": str(made.params.clip_skip) if made.params.clip_skip > 1 else "",
        "thumbnail": thumbnail(preview) if preview else "",
    }
    return {f"modelspec.{key}": value for key, value in values.items() if value}


def _base(made: Made) -> str:
    base = BASES.get(made.family, "sd_v1")
    return f"{base}_v" if made.predicts_velocity and made.family != "sdxl" else base


def _tags(made: Made) -> Counter[str]:
    found: Counter[str] = Counter()
    for tags in made.dataset.tags.values():
        found.update(tags)
    return found


def _buckets(plan: Plan) -> dict[str, Any]:
    sizes = enumerate(plan.buckets.items())
    return {"buckets": {str(n): {"resolution": list(size), "count": len(items)} for n, (size, items) in sizes}}


def _folders(plan: Plan, regular: bool = False) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for item in plan.items:
        if item.regular == regular:
            folder = found.setdefault(item.path.parent.name, {"n_repeats": item.repeats, "img_count": 0})
            folder["img_count"] += 1
    return found


def _dataset(made: Made) -> dict[str, Any]:
    params, plan = made.params, made.plan
    return {
        "is_dreambooth": True,
        "batch_size_per_device": params.batch_size,
        "num_train_images": sum(item.repeats for item in plan.items if not item.regular),
        "num_reg_images": sum(item.repeats for item in plan.items if item.regular),
        "resolution": [params.resolution, params.resolution],
        "enable_bucket": params.buckets,
        "bucket_info": _buckets(plan),
        "tag_frequency": made.dataset.tags,
        "subsets": [{"image_dir": name, **counts} for name, counts in _folders(plan).items()],
    }


def _origin(made: Made) -> str:
    pictures = f"{len(made.dataset.training)} pictures"
    note = [f"{key}: {value}" for key, value in made.dataset.note.items()]
    said = [f"Trained by Atelier {__version__} for {made.model}, {made.step} steps on {pictures}.", *note]
    return "\n".join(said)


def files(folder: Path, name: str) -> dict[str, Path]:
    """Where a finished LoRA's parts lie: weights, preview and card, as A1111 names them."""
    return {
        "weights": folder / f"{name}.safetensors",
        "preview": folder / f"{name}.preview.png",
        "card": folder / f"{name}.json",
    }
