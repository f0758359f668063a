"""Text-to-image pipelines as `diffusers` has them: their parts, their LoRA files, pictures, noise and the loss.

`diffusers` and Pillow are imported inside functions: the extra `diffusion` brings them.
"""
