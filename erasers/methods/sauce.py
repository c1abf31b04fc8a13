"""SAUCE, reconstructed: "SAUCE: Selective Concept Unlearning in Vision-Language Models with Sparse Autoencoders",
arXiv 2503.14530."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from erasers.concept import Concept, Concepts, as_concepts
from erasers.eraser import ModelEraser
from erasers.files.hashing import file_sha256
from erasers.files.reading import at_home
from erasers.methods.itd.eraser import Activity, activity_in, floors_of, gate_parts, select, thresholds
from erasers.models.components import find_parameter
from erasers.models.model_pipeline import ModelPipeline, model_pipeline
from erasers.options import require_least, require_shares
from erasers.patch import Patch
from erasers.patch.build import patch_meta
from erasers.patch.feature_hooks import FeatureGate
from erasers.sae.autoencoder import SAE, load_sae
from erasers.sae.picture_block import PictureBlock, find_picture_block
from erasers.training.pictures import upright

_PICTURES_A_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class SAUCE(ModelEraser):
    """Turn down features of a sparse autoencoder in the pictures of the concept that a vision-language model sees.

    Of a feature's activity z in pictures, the strongest of their places, those are taken that fire for the concept
    alone, by the rule of `itd`, and of them the ones with the largest mean of z with the concept minus that without.
    Where one of them passes its gate in a picture, x' = x + W_d (z' - z) with z' = scale z at all its places; every
    other picture is seen bit for bit as before, and so is text.

    A reconstruction: the paper was withdrawn, has no code, and its layer, sizes and number of features are not known.
    Its rule is the mean of z over pictures of the concept alone; it has no gate, so that it changes whatever picture a
    feature murmurs in. The autoencoder is of the projector, or of a module of the vision tower.

    Args:
        sae: File of an autoencoder of the projector or of a module of the vision tower.
        scale: What the activity of the features is multiplied by; 0 takes it away, less turns it round.
        features: How many of each concept, at most.
        quiet: Activity below this share of the largest that a feature has in any picture is silence.
        often: Share of the pictures of the concept in which a feature is active.
        margin: Where the threshold lies between the strongest other picture (0) and the weakest of the concept (1).
    """

    name: ClassVar[str] = "sauce"
    paper: ClassVar[str] = "[SAUCE](https://arxiv.org/abs/2503.14530), withdrawn; reconstructed"
    family: ClassVar[str] = "runtime hook, what a vision-language model sees (LLaVA)"
    strengths: ClassVar[str] = "other pictures and text stay bit for bit"
    limits: ClassVar[str] = "needs pictures of the concept and others, and an autoencoder; can be switched off"
    keeps: ClassVar[bool] = False
    sees: ClassVar[bool] = True
    models: ClassVar[tuple[str, ...]] = ("LlavaForConditionalGeneration",)

    sae: str = ""
    scale: float = -2.0
    features: int = 16
    quiet: float = 0.3
    often: float = 0.5
    margin: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        require_least(self, features=1)
        require_shares(self, "quiet", "often", "margin")

    def config(self) -> dict[str, Any]:
        """See `Eraser.config`; of the autoencoder the name of the file alone."""
        return asdict(self) | {"sae": Path(self.sae).name}

    def prepared(self, pipe: Any, concepts: Concepts) -> tuple[Concept, ...]:
        """See `Eraser.prepared`; a concept is what its pictures show, whatever it is called.

        Raises:
            ValueError: A concept without pictures.
        """
        given = as_concepts(concepts)
        for concept in given:
            if not concept.images:
                raise ValueError(f"expected pictures of {concept.name!r}, got none: Concept(name, images=[...])")
        return given

    def fit(
        self,
        pipe: Any,
        concepts: Concepts,
        *,
        kept: Sequence[Any] = (),
        generator: torch.Generator | None = None,
        progress: bool = True,
    ) -> Patch:
        """Find the features and their gates; see `Eraser.fit`. Nothing is random, and it takes seconds.

        Args:
            pipe: An `erasers.ModelPipeline` of a LLaVA, or a pipeline of `transformers.pipeline` of one.
            concepts: What is erased, with `images` of each.
            kept: Pictures without any of them, files or of PIL.
            generator: Not used.
            progress: Not used.

        Raises:
            UnsupportedPipeline: A model of another class.
            ValueError: No pictures, no autoencoder, one of another model, or a concept that no feature fires for alone.
        """
        pipe = model_pipeline(pipe, self.models)
        concepts = self.prepared(pipe, concepts)
        if not self.sae:
            raise ValueError(
                "expected the file of a sparse autoencoder as sae, got none; train one with "
                "erasers.sae.training.train_sae on erasers.sae.picture_block.rows_of_pictures"
            )
        if not kept:
            raise ValueError("expected kept pictures, without the concept, got none: fit(..., kept=[...])")
        block, sae = read_sae(pipe, self.sae)
        others = seen(sae, block, kept)
        gates, floors = dict[int, float](), dict[int, float]()
        for concept in concepts:
            shown = seen(sae, block, concept.images)
            numbers = self.chosen(concept.name, shown, others)
            gate = thresholds(shown.strength[:, numbers], others.strength[:, numbers], self.margin)
            floor = floors_of(sae, shown.active[:, numbers])
            for number, value, least in zip(numbers.tolist(), gate.tolist(), floor.tolist(), strict=True):
                gates[number] = min(gates.get(number, float("inf")), max(value, least))
                floors[number] = min(floors.get(number, float("inf")), least)
        parts = gate_parts(sae, gates, floors, self.scale) | ({} if block.first else {"first": torch.zeros(1)})
        return self._patch(pipe, block, concepts, parts)

    def chosen(self, name: str, shown: Activity, others: Activity) -> torch.Tensor:
        """Numbers of the features of a concept `[m]`.

        Raises:
            ValueError: None fires for it alone.
        """
        alone = select(shown.active, others.active, shown.active.shape[1], self.quiet, self.often)
        if not len(alone):
            raise ValueError(
                f"expected features that fire for pictures of {name!r} alone, got none; train the autoencoder on "
                "pictures of it, or on more features, or leave pictures out of kept that show it"
            )
        return alone[contrast(shown.active, others.active)[alone].topk(min(self.features, len(alone))).indices]

    def _patch(
        self, pipe: ModelPipeline, block: PictureBlock, concepts: Sequence[Concept], parts: dict[str, torch.Tensor]
    ) -> Patch:
        tensors = {f"hook/{block.target}/{FeatureGate.kind}/{part}": tensor for part, tensor in parts.items()}
        base = block.fingerprints()
        weights = {name: find_parameter(pipe, name, linear=False, edit=False) for name in base}
        dtype = next(iter(weights.values())).dtype
        meta = patch_meta(self.name, self.config(), concepts, base, dtype, weights=weights)
        return Patch(tensors, meta | {"sae": {block.target: file_sha256(at_home(self.sae))}})


def seen(sae: SAE, block: PictureBlock, sources: Sequence[Any]) -> Activity:
    """What the features of an autoencoder do in pictures, files or of PIL."""
    pictures = [upright(source) for source in sources]
    return activity_in(sae, map(block.counted, block.batches(pictures, _PICTURES_A_BATCH)))


def contrast(shown: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Mean z of pictures with the concept minus that of others, `[n]`; from z `[e, n]` and `[r, n]`."""
    return shown.mean(dim=0) - others.mean(dim=0)


def read_sae(pipe: ModelPipeline, path: str) -> tuple[PictureBlock, SAE]:
    """The module that an autoencoder describes, and the autoencoder.

    Raises:
        FileNotFoundError: No such file.
        ValueError: An autoencoder of another model or module.
    """
    sae, meta = load_sae(at_home(path))
    name, _, inner = meta["target"].partition(".")
    block = find_picture_block(pipe, inner if name == PictureBlock.name else meta["target"])
    if block.fingerprints() != meta["base"]:
        raise ValueError(f"expected an autoencoder of this model in {Path(path).name}, got one of other weights")
    return block, sae
