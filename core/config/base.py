"""``ModelConfig``: the base of every plugin's config class. Types are strict, and all errors of a file are reported at
once.

It has the fields that all decoder-only language models share. A plugin's subclass adds the rest with their defaults.
The class also tells which keys of a file it did not read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from core.config.pydantic_plugins import load_pydantic_plugins
from core.errors import ConfigError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

load_pydantic_plugins()  # before the first class

# Keys of transformers' configs that describe training, export or bookkeeping: they do not change what a loaded model
# computes at inference, so leaving them unread loses nothing.
_HARMLESS = frozenset(
    {
        "_attn_implementation",
        "_attn_implementation_autoset",
        "_from_model_config",
        "_name_or_path",
        "attention_dropout",
        "attn_implementation",
        "bos_token_id",
        "chunk_size_feed_forward",
        "dtype",
        "eos_token_id",
        "hidden_dropout",
        "id2label",
        "initializer_range",
        "is_decoder",
        "is_encoder_decoder",
        "label2id",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "pretraining_tp",
        "quantization",
        "quantization_config",
        "residual_dropout",
        "return_dict",
        "sep_token_id",
        "tokenizer_class",
        "torch_dtype",
        "torchscript",
        "transformers_version",
        "unk_token_id",
        "unsloth_fixed",
        "unsloth_version",
        "use_cache",
    }
)
_CAUSAL_HEADS = ("ForCausalLM", "LMHeadModel")
_MAX_PROBLEMS = 4
_MAX_LAYERS = 10_000  # far beyond any model; each costs a module, so a damaged number would take forever
_MAX_INTEGER = 2**31 - 1  # MLX's shapes and positions are 32-bit


class ModelConfig(BaseModel):
    """The fields of every decoder-only language model.

    Types are strict: the string ``"64"`` is not an integer. Instances are frozen, comparable and picklable. Subclass
    it, add fields named as in ``config.json``, and give a default only where the reference implementation has one.

    Attributes:
        harmless: further keys that do not change what the model computes; they are never reported as unread.
        causal_architectures: accepted values of ``architectures``; empty accepts any name with a causal language-model
            head (``…ForCausalLM``).
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", allow_inf_nan=False)

    harmless: ClassVar[frozenset[str]] = frozenset()
    causal_architectures: ClassVar[frozenset[str]] = frozenset()

    model_type: str
    architectures: list[str] | None = None
    vocab_size: PositiveInt
    hidden_size: PositiveInt
    num_hidden_layers: int = Field(gt=0, le=_MAX_LAYERS)
    tie_word_embeddings: bool = False

    @model_validator(mode="after")
    def _is_of_this_world(self) -> Self:
        for name, value in self:
            if isinstance(value, int) and value > _MAX_INTEGER:
                raise ValueError(f"key {name!r}: expected at most {_MAX_INTEGER:,}, found {_show(value)}")
        return self

    @model_validator(mode="after")
    def _has_language_model_head(self) -> Self:
        names = self.architectures or []
        if self.causal_architectures:
            accepted = any(name in self.causal_architectures for name in names)
        else:
            accepted = any(name.endswith(_CAUSAL_HEADS) for name in names)
        if names and not accepted:
            raise ConfigError(
                f"architectures names {', '.join(names)}, which has no causal language-model head",
                expected=" or ".join(sorted(self.causal_architectures)) or "a name that ends in ForCausalLM",
                found=", ".join(names),
                hint="Only text generation models load; classifiers, embedders and encoders do not.",
            )
        return self

    @model_validator(mode="after")
    def _heads_share_keys_evenly(self) -> Self:
        heads, shared = getattr(self, "num_attention_heads", None), getattr(self, "num_key_value_heads", None)
        if heads and shared and heads % shared:
            raise ValueError(f"num_attention_heads ({heads}) is not a multiple of num_key_value_heads ({shared})")
        return self

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Self:
        """Validates a parsed ``config.json``.

        Raises:
            ConfigError: naming every key (up to four) that is missing or of the wrong type, with what was expected.
        """
        try:
            return cls.model_validate(dict(raw))
        except ValidationError as error:
            found = error.errors(include_url=False)
            # If head_dim could not be derived, the error of another key is the reason.
            problems = [one for one in found if one["type"] != "missing" or one["loc"] != ("head_dim",)] or found
            lines = [_describe(problem, cls.spelling(raw, problem["loc"])) for problem in problems[:_MAX_PROBLEMS]]
            if len(problems) > _MAX_PROBLEMS:
                lines.append(f"and {len(problems) - _MAX_PROBLEMS} more")
            hint = "Compare the file with the one the model was published with."
            raise ConfigError("; ".join(lines), hint=hint) from None

    @classmethod
    def spelling(cls, raw: Mapping[str, Any], path: tuple[str | int, ...]) -> tuple[str | int, ...]:
        """The path in ``raw`` from which the field at ``path`` was read. Errors name that path.

        Override it in a subclass that normalises spellings before validation.
        """
        return path

    @classmethod
    def derive_heads(cls, raw: Any) -> Any:
        """Fills in what transformers derives: ``head_dim``, and ``num_key_value_heads`` where it is ``null``.

        For use in a subclass's ``model_validator(mode="before")``. Values of a wrong type are left for validation.
        """
        if not isinstance(raw, Mapping):
            return raw
        derived = dict(raw)
        sizes = {name: raw.get(name, cls.model_fields[name].default) for name in ("hidden_size", "num_attention_heads")}
        hidden, heads = sizes["hidden_size"], sizes["num_attention_heads"]
        if derived.get("head_dim") is None and type(hidden) is type(heads) is int and heads > 0:
            derived["head_dim"] = hidden // heads
        if derived.get("num_key_value_heads", 0) is None:
            derived["num_key_value_heads"] = heads
        return derived

    @classmethod
    def unread_keys(cls, raw: Mapping[str, Any]) -> list[str]:
        """Keys of ``raw`` that this class does not read and that are not declared harmless; nested ones are dotted."""
        known = cls.read_keys() | _HARMLESS | cls.harmless
        return sorted(key for key in raw if key not in known)

    @classmethod
    def read_keys(cls) -> frozenset[str]:
        """Top-level keys of ``config.json`` that this class reads."""
        aliases: Iterable[str | None] = (field.alias for field in cls.model_fields.values())
        return frozenset(cls.model_fields) | frozenset(alias for alias in aliases if alias)


def _describe(problem: ErrorDetails, path: tuple[str | int, ...]) -> str:
    key = ".".join(str(part) for part in path)
    if problem["type"] == "missing":
        return f"key {key!r} is missing"
    if problem["type"] == "value_error":  # the message of a validator; its input may be the whole file
        said = problem["msg"].removeprefix("Value error, ")
        return f"key {key!r}: {said}" if key else said
    expected = problem["msg"].removeprefix("Input should be ")
    return f"key {key!r}: expected {expected}, found {_show(problem['input'])}"


def _show(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python refuses to print integers of thousands of digits
        text = "a very long number"
    if len(text) > 60:
        text = text[:57] + "..."
    return f"{text} ({type(value).__name__})"
