"""What LoRA files hold and do to weights: shared by the extension, which draws with them, and by merging."""
