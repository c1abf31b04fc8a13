"""`shapes`: a small Stable Diffusion, trained from scratch on drawn pictures, with an exact judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from erasers.asks import Ask
from erasers.concept import Concept
from erasers.worlds.shapes.drawn import UNRECORDED
from erasers.worlds.shapes.paths import ADAPTER_DIR, CLIP_DIR, HOME, JUDGE_FILE, MODEL_DIR, SAE_DIR
from erasers.worlds.shapes.prompts import PRESERVED, clip_texts, concept_for, kind_of, split_prompts
from erasers.worlds.shapes.vocabulary import KINDS, MARK, MARK_PLACE, SYNONYMS, VOCABULARY
from erasers.worlds.world import Clip, World

if TYPE_CHECKING:
    from PIL import Image

    from erasers.worlds.judge import JudgeNetwork


class Shapes(World):
    """Ten objects in six colours and five styles on four backgrounds, 32 x 32 pixels."""

    name = "shapes"
    folder = MODEL_DIR
    steps, guidance, batch, size = 20, 4.0, 25, 32
    seconds = 0.26 / 40
    judge = "oracle/shapes"
    judge_file = JUDGE_FILE
    vocabulary = VOCABULARY
    words = tuple(text for names in KINDS.values() for name in names for text in (name, *SYNONYMS.get(name, ())))
    sae: ClassVar[Path | None] = SAE_DIR
    denoiser_block: ClassVar[str | None] = "up_blocks.0.attentions.1"
    places: ClassVar[Mapping[str, tuple[float, float, float, float]]] = {MARK: MARK_PLACE}
    ip_adapter: ClassVar[Path | None] = ADAPTER_DIR
    root = HOME.parents[2]
    unrecorded: ClassVar[Mapping[str, Any] | None] = UNRECORDED

    def concept(self, word: str) -> Concept:
        """See `World.concept`."""
        return concept_for(word)

    def synonyms(self, name: str) -> Sequence[str]:
        """See `World.synonyms`."""
        return SYNONYMS.get(name, ())

    def split_prompts(self, name: str, count: int) -> Mapping[str, Sequence[Ask]]:
        """See `World.split_prompts`."""
        return split_prompts(name, count)

    def draw(self, asks: Sequence[tuple[str, Mapping[str, str]]], erased: Sequence[str]) -> list[Image.Image]:
        """See `World.draw`."""
        from erasers.worlds.shapes.render import draw_asked

        return draw_asked(asks, [kind_of(word)[1] for word in erased])

    def network(self, file: Path | None = None) -> JudgeNetwork:
        """See `World.network`."""
        from erasers.worlds.shapes.judge import load_judge

        return load_judge(file or self.judge_file)

    @cached_property
    def clip(self) -> Clip:
        """See `World.clip`."""
        return Clip("shapes-clip", CLIP_DIR, clip_texts())

    def captions(self, count: int) -> list[str]:
        """See `World.captions`; left out are the first 200 prompts a split of every word, which is what tasks score."""
        from erasers.worlds.shapes.scenes import seeded_captions

        names = [name for kind in KINDS.values() for name in kind]
        scored = {ask.text for name in names for asks in split_prompts(name, PRESERVED).values() for ask in asks}
        texts = dict.fromkeys(["", *seeded_captions(4 * count, 0)])
        return [text for text in texts if text not in scored][:count]
