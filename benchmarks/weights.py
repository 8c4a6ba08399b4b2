"""Random weights in the shape of Stable Diffusion 1.5, 2.1 GB in fp16: `python -m benchmarks.weights <folder>`."""

import json
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from backend.diffusion.reading import tokenizers

STARTER = Path(__file__).parent.parent / "models" / "starter"


def write(folder: Path) -> None:
    torch.manual_seed(0)
    with torch.device("cpu"):
        tokenizer = tokenizers.clip()
        text = CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=12,
            num_attention_heads=12,
            projection_dim=768,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        down, up = ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3
        unet = UNet2DConditionModel(
            sample_size=64, cross_attention_dim=768, attention_head_dim=8, down_block_types=down, up_block_types=up
        )
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            layers_per_block=2,
            latent_channels=4,
        )
        pipeline = StableDiffusionPipeline(
            vae=vae.half(),
            text_encoder=CLIPTextModel(text).half(),
            tokenizer=tokenizer,
            unet=unet.half(),
            scheduler=DDIMScheduler.from_pretrained(STARTER / "scheduler"),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.save_pretrained(folder)
    (folder / "atelier.json").write_text(json.dumps({"title": "Random weights"}))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
