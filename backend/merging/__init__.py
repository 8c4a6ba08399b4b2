"""Making models of models: merging, converting, and taking LoRAs out of them; tensor by tensor, never whole in memory.

recipe.py says what is wanted and has no torch; chores.py runs it in a process of its own, with progress and an end.
"""
