"""Where the wrapper keeps the text model's tensors, and which of its own are left unread."""

from __future__ import annotations

from core.weights import WeightMap

_VISION = {"vision_tower": "of the vision tower: text only", "multi_modal_projector": "of the image input: text only"}


def wrapped(inner: WeightMap, layout: str) -> WeightMap:
    """The text model's map under the wrapper's names.

    Published files put the whole text model under ``language_model``; in memory, transformers 5 puts it without its
    head under ``model.language_model``. A tied model's head is not left unread: transformers takes a head that is
    there, so what the file and the config say must agree.
    """
    in_memory = layout == "hf-fused"
    outer = "model." if in_memory else ""

    def rename(name: str) -> str:
        if in_memory:
            return f"model.language_model.{name.removeprefix('model.')}" if name.startswith("model.") else name
        return f"language_model.{name}"

    text = inner.renamed(rename)
    ignored = {name: why for name, why in text.ignored.items() if "lm_head" not in name.split(".")}
    vision = {f"{outer}{module}.**": why for module, why in _VISION.items()}
    return WeightMap(text.rules, text.ranges, {**ignored, **vision})
