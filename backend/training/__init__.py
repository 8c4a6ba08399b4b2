"""Training of LoRAs: plain data and pictures in `params`, `presets`, `dataset`; torch in the rest."""
