"""Finished pictures: files in the outputs folder, rows that find them."""
