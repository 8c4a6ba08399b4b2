"""The only place of `backend` that imports torch and diffusers: from a request to pictures."""
