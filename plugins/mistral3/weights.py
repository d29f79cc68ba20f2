"""Maps the text model's tensors to their names in the wrapper, and lists the wrapper's tensors that are left unread."""

from __future__ import annotations

from core.weights import WeightMap

_VISION = {"vision_tower": "of the vision tower: text only", "multi_modal_projector": "of the image input: text only"}


def wrapped(inner: WeightMap, layout: str) -> WeightMap:
    """The text model's map with the wrapper's names.

    Published files put the whole text model under ``language_model``. In memory, transformers 5 puts it without its
    head under ``model.language_model``. The head of a tied model is not ignored: transformers uses a head that is
    present, so file and config must agree.
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
