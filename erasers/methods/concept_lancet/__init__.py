"""Concept Lancet, on the text that a denoiser reads."""

from erasers.methods.concept_lancet.eraser import ConceptLancet

__all__ = ["ConceptLancet"]
