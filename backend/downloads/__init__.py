"""Getting models from Hugging Face, Civitai or any https address: whole and checked, or not there at all."""
