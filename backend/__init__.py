"""Atelier's back end; only `backend.diffusion` (and later `backend.training`) imports torch."""

__version__ = "0.1.0"
