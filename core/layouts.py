"""Names of what a checkpoint can be arranged as; knows nothing else."""

FORMATS = ("hf", "mistral")
"""Kinds of files, the default first: ``config.json`` with ``model*.safetensors``, ``params.json`` with
``consolidated*.safetensors``."""

LAYOUTS = ("hf", "hf-fused", "mlx", "mistral")
"""Arrangements of tensors that a plugin may have a weight map for, in the order in which ties are broken."""
