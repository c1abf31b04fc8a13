"""What is erased: concepts, the words for them, and captions of ordinary pictures."""

from erasers.concept.concept import (
    KINDS,
    Concept,
    Concepts,
    Kind,
    as_concepts,
    names,
    preset_names,
    preset_options,
)

__all__ = ["KINDS", "Concept", "Concepts", "Kind", "as_concepts", "names", "preset_names", "preset_options"]
