"""The page: a Gradio shell whose surface is drawn by ui/static from the declarations of the parameters."""
