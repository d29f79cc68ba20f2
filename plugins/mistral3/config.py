"""Mistral 3's ``config.json``: a ``text_config``, which the plugin of its own type reads, and keys about images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import SerializeAsAny, model_validator

from core import delegate
from core.config import ModelConfig
from core.errors import ConfigError


class Mistral3Config(ModelConfig):
    """The text model's settings. Attributes that this class does not have are read from ``text_config``.

    Attributes:
        text_config: as its own plugin has read it.
    """

    causal_architectures: ClassVar[frozenset[str]] = frozenset({"Mistral3ForConditionalGeneration"})
    # Keys for images, which have no effect without one.
    harmless: ClassVar[frozenset[str]] = frozenset(
        {
            "image_token_id",
            "image_token_index",
            "multimodal_projector_bias",
            "projector_hidden_act",
            "spatial_merge_size",
            "vision_config",
            "vision_feature_layer",
        }
    )

    text_config: SerializeAsAny[ModelConfig]

    @property
    def text_type(self) -> str:
        """The ``model_type`` of the text model, whose plugin builds it."""
        return self.text_config.model_type

    def __getattr__(self, name: str) -> Any:
        # Called only for names that the class does not have: the sizes and settings of the text model.
        text = self.__dict__.get("text_config")
        if text is None or name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(text, name)

    @model_validator(mode="before")
    @classmethod
    def _read_the_text(cls, raw: Any) -> Any:
        if not isinstance(raw, Mapping) or isinstance(raw.get("text_config"), ModelConfig):
            return raw
        inner = _text_config(raw)
        text = delegate(inner["model_type"]).parse_config(inner)
        shared = ("vocab_size", "hidden_size", "num_hidden_layers", "tie_word_embeddings")
        return {**raw, **{name: getattr(text, name) for name in shared}, "text_config": text}

    @classmethod
    def unread_keys(cls, raw: Mapping[str, Any]) -> list[str]:
        inner = _text_config(raw)
        unread = type(delegate(inner["model_type"]).parse_config(inner)).unread_keys(inner)
        return sorted(super().unread_keys(raw) + [f"text_config.{key}" for key in unread])


def _text_config(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The text model's own config, with the outer ``tie_word_embeddings``, which is the one that transformers uses.

    If neither config has the key, they are not tied: published files of that kind have a head.
    """
    inner = raw.get("text_config")
    if not isinstance(inner, Mapping):
        raise ConfigError(
            "key 'text_config' is missing" if inner is None else "key 'text_config' is not an object",
            expected="the text model's config",
            found=None if inner is None else type(inner).__name__,
        )
    # The default is transformers': a Mistral.
    text = {"model_type": "mistral", **inner}
    if raw.get("tie_word_embeddings") is not None:
        text["tie_word_embeddings"] = raw["tie_word_embeddings"]
    return text
