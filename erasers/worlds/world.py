"""What an embedded world gives, so that no one outside of its folder has to know which one it is."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from erasers.asks import KEPT_SPLITS, Ask
from erasers.concept import Concept, names

if TYPE_CHECKING:
    from PIL import Image

    from erasers.worlds.judge import JudgeNetwork

_SPARE = 12
"""Times as many prompts as needed: with several erased concepts most kept prompts may have to go."""


@dataclass(frozen=True)
class Clip:
    """A small open_clip model of the pictures of a world.

    Args:
        name: Under which its figures are reported; names the weights.
        folder: With `open_clip_config.json` and safetensors.
        texts: Property -> value -> captions of it.
    """

    name: str
    folder: Path
    texts: Mapping[str, Mapping[str, Sequence[str]]]


class World(ABC):
    """An embedded model with its words, its judge and its pictures; what needs torch is loaded on use.

    A world whose model draws the pictures of another is a subclass of that one: it has a name, a folder and a sampler
    of its own, and keeps `judge`, which is how it shares the judge.

    Attributes:
        name: As `--model` takes it.
        folder: Of the model, a plain diffusers folder.
        steps: Denoising steps of a picture.
        guidance: Guidance scale.
        batch: Pictures at a time.
        size: Side of a picture in pixels.
        tokens: What is drawn with as the pipeline's `max_sequence_length`; None: it takes none, or its own default.
        seconds: Of one pass of the denoiser for one picture on one core of a CPU, as measured.
        judge: As for `get_judge`; `oracle/<name>` where the world has the judge itself.
        judge_file: Weights of the judge.
        vocabulary: Every word of a prompt that the model knows.
        words: What a concept may be called.
        sae: Folder of sparse autoencoders of the model.
        denoiser_block: Block of the denoiser that they describe when none is named.
        places: Value -> where in a picture it always is: left, top, right and bottom as shares of its sides; others
            may be anywhere.
        ip_adapter: Folder of an IP-Adapter of the model.
        root: Where paths of retrained models and of patches in a task start, if not in the current folder; an
            installed library has none of them.
        unrecorded: How pictures were drawn of which results say no setting.
    """

    name: ClassVar[str]
    folder: ClassVar[Path]
    steps: ClassVar[int]
    guidance: ClassVar[float]
    batch: ClassVar[int]
    size: ClassVar[int]
    tokens: ClassVar[int | None] = None
    seconds: ClassVar[float]
    judge: ClassVar[str]
    judge_file: ClassVar[Path]
    vocabulary: ClassVar[Sequence[str]]
    words: ClassVar[Sequence[str]]
    sae: ClassVar[Path | None] = None
    denoiser_block: ClassVar[str | None] = None
    places: ClassVar[Mapping[str, tuple[float, float, float, float]]] = {}
    ip_adapter: ClassVar[Path | None] = None
    root: ClassVar[Path | None] = None
    unrecorded: ClassVar[Mapping[str, Any] | None] = None

    @abstractmethod
    def concept(self, word: str) -> Concept:
        """The concept of a word or synonym: its canonical name with kind, anchor, neighbours and what is preserved.

        Raises:
            ValueError: The world has no such word; the message lists those it has.
        """

    @abstractmethod
    def synonyms(self, name: str) -> Sequence[str]:
        """Other words for a canonical one, which stay held out unless the caller adds them as aliases."""

    @abstractmethod
    def split_prompts(self, name: str, count: int) -> Mapping[str, Sequence[Ask]]:
        """Split -> prompts about a canonical word, always the same; a split that has no words is absent.

        Raises:
            ValueError: count < 1.
        """

    @abstractmethod
    def draw(self, asks: Sequence[tuple[str, Mapping[str, str]]], erased: Sequence[str]) -> list[Image.Image]:
        """A true picture for each prompt, which sets of pictures are measured from; always the same.

        Args:
            asks: Texts, and property -> value that each names.
            erased: Words that no picture shows unless its prompt names them.
        """

    @abstractmethod
    def network(self, file: Path | None = None) -> JudgeNetwork:
        """The judge, ready to use; its features and layers measure pictures, too.

        Args:
            file: Its weights; `judge_file` when None.
        """

    @property
    def clip(self) -> Clip | None:
        """The CLIP of the world, where it has one."""
        return None

    def captions(self, count: int) -> list[str]:
        """Distinct captions, and "", to train a sparse autoencoder on; none of them is a prompt that is scored.

        Raises:
            ValueError: The world has none.
        """
        raise ValueError(f"expected prompts for {self.name}, which has no captions of its own; name a file of them")

    @property
    def judges(self) -> bool:
        """Whether the judge is the world's own."""
        return self.judge == f"oracle/{self.name}"

    @property
    def lineage(self) -> list[str]:
        """The name of this world, and of those whose pictures it draws."""
        return [cls.name for cls in type(self).__mro__ if issubclass(cls, World) and "name" in vars(cls)]

    def holds(self, model: str | Path) -> bool:
        """Whether a model is the one of this world or an edited copy of it: one vocabulary, and the same parts."""
        if str(model) == self.name:
            return True
        mine, theirs = (Path(folder) / "tokenizer" / "tokenizer.json" for folder in (self.folder, model))
        if not (mine.is_file() and theirs.is_file() and mine.read_bytes() == theirs.read_bytes()):
            return False
        return all((Path(model) / part).is_dir() for part in self._parts)

    @cached_property
    def _parts(self) -> list[str]:
        """The folders of the model's components."""
        return [path.name for path in self.folder.iterdir() if path.is_dir()]

    def prompts(self, concepts: Sequence[Concept], samples: int) -> dict[str, dict[str, list[Ask]]]:
        """Concept name -> split -> prompts.

        A kept prompt that names another erased concept is left out, since that is not kept; so is a synonym prompt that
        uses an alias, since that was not held out.

        Raises:
            ValueError: A word that the world does not know, or samples < 1.
        """
        words = {concept.name: self.concept(concept.name).name for concept in concepts}
        erased = [text for word in words.values() for text in (word, *self.synonyms(word))]
        table: dict[str, dict[str, list[Ask]]] = {}
        for concept in concepts:
            banned = {split: erased for split in KEPT_SPLITS} | {"synonym": list(concept.aliases)}
            count = samples * (_SPARE if len(concepts) > 1 or concept.aliases else 1)
            pool = self.split_prompts(words[concept.name], count)
            splits = {split: _without(asks, banned.get(split, ()), samples) for split, asks in pool.items()}
            table[concept.name] = {split: asks for split, asks in splits.items() if asks}
        return table

    def unknown_words(self, text: str) -> list[str]:
        """The words of a prompt that the world does not know."""
        return [word for word in re.findall(r"\w+", text.lower()) if word not in self.vocabulary]


def _without(asks: Sequence[Ask], banned: Sequence[str], count: int) -> list[Ask]:
    """The first prompts that name none of some words."""
    return list(islice((ask for ask in asks if not any(names(ask.text, word) for word in banned)), count))
