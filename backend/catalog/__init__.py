"""The models there are: where they lie, what they are, what they are called; no torch."""

from backend.catalog.catalog import Catalog
from backend.catalog.detect import FAMILIES, Detected, Kind, detect
from backend.catalog.hashes import fingerprint, old_hash
from backend.catalog.model import Model
from backend.catalog.roots import Roots

__all__ = ["FAMILIES", "Catalog", "Detected", "Kind", "Model", "Roots", "detect", "fingerprint", "old_hash"]
