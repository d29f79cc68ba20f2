"""The names of file formats and tensor layouts of a checkpoint."""

FORMATS = ("hf", "mistral")
"""Kinds of files, the default first: ``config.json`` with ``model*.safetensors``, ``params.json`` with
``consolidated*.safetensors``."""

LAYOUTS = ("hf", "hf-fused", "mlx", "mistral")
"""Layouts that a plugin may have a weight map for; of two that fit equally well, the first is used."""
