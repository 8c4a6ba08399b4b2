"""Everything behind the page: requests, jobs, the engine, the API. Only `backend.diffusion` imports torch."""

__version__ = "0.1.0"
