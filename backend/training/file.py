"""The file of a LoRA: tensors and what they say of themselves, as texts, with A1111's hashes; no torch."""

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from typing import Any

from safetensors.numpy import load, save

from backend import weights
from backend.catalog.hashes import old_hash_of
from backend.weights import LENGTH

Write = Callable[[dict[str, str]], bytes]
"""The tensors as a safetensors file with these metadata."""


def with_hashes(write: Write, metadata: Mapping[str, str]) -> bytes:
    """The file, with A1111's two hashes of it in the metadata."""
    plain = write({key: value for key, value in metadata.items() if key.startswith("ss_")})
    hashes = {"sshs_model_hash": model_hash(plain), "sshs_legacy_hash": old_hash_of(io.BytesIO(plain))}
    spec = {"modelspec.hash_sha256": f"0x{model_hash(plain)}"} if "modelspec.sai_model_spec" in metadata else {}
    return write({**metadata, **hashes, **spec})


def renamed(file: bytes, name: str) -> bytes:
    """The same weights under another name."""
    metadata = weights.parse(
        file[LENGTH : LENGTH + weights.header_length(file[:LENGTH], len(file))], len(file)
    ).metadata
    old = metadata.get("ss_output_name", "")
    changed = {key: name for key in ("ss_output_name", "modelspec.title") if key in metadata}
    if hint := metadata.get("modelspec.usage_hint"):
        changed["modelspec.usage_hint"] = hint.replace(f"<lora:{old}:", f"<lora:{name}:")
    tensors = load(file)
    kept = {key: value for key, value in metadata.items() if not key.startswith("sshs_")}
    return with_hashes(lambda values: bytes(save(tensors, values)), {**kept, **changed})


def model_hash(file: bytes) -> str:
    """SHA-256 of what stands behind the header: it stays the same when the metadata are edited."""
    return hashlib.sha256(file[8 + int.from_bytes(file[:8], "little") :]).hexdigest()


def texts(values: Mapping[str, Any]) -> dict[str, str]:
    """Metadata as safetensors wants them; None is left out as kohya writes "None"."""
    return {
        key: value if isinstance(value, str) else json.dumps(value) if isinstance(value, dict | list) else str(value)
        for key, value in values.items()
    }
