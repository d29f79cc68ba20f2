"""The built-in plugins pass the kit, with reference logits, in every configuration that there are references of."""

from __future__ import annotations

from core.testing import ArchitectureTests
from tests.fixtures import FIXTURES, oracle
from tests.testing.mutant import REFERENCES


class TestMistral(ArchitectureTests):
    reference = oracle("mistral_swa8")
    layouts = ("hf", "mistral")


class TestMistralTied(ArchitectureTests):
    reference = oracle("mistral_tied")


class TestMistralHeadDim(ArchitectureTests):
    reference = oracle("mistral_headdim32")


class TestMixtral(ArchitectureTests):
    reference = oracle("mixtral_swa8")
    layouts = ("hf", "hf-fused", "mlx", "mistral")


class TestMixtralTop3(ArchitectureTests):
    reference = oracle("mixtral_8e_top3")


class TestMistral3(ArchitectureTests):
    reference = FIXTURES / "wrapped" / "mistral3"


class TestMistralOfTransformers5(ArchitectureTests):
    """Its config has ``rope_parameters``; its reference has hidden states."""

    reference = REFERENCES["mistral"]
