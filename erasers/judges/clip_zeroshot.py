"""CLIP as a judge without training: which of several texts fits a picture best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from PIL import Image
from torch import Tensor

from erasers import worlds
from erasers.files.reading import read_json, value_of
from erasers.judges import Fingerprint, Verdict, of_worlds
from erasers.judges.base import PictureJudge, own_profile
from erasers.judges.weights import file_hashes, model_folder
from erasers.models.loading import pickled

Classes: TypeAlias = Mapping[str, Mapping[str, Sequence[str] | str] | Sequence[str]]
_CONFIG = "open_clip_config.json"


class ClipZeroShot(PictureJudge):
    """Says whether every value that a prompt wants is the one, among its property's, whose texts fit the picture best.

    A value's embedding is the normalised mean of its texts' embeddings. Its probability is the softmax of the model's
    scaled cosines over the values of the property, and the verdict's is the product over the wanted values. Without a
    threshold the largest one counts as shown, so a property needs a value such as "something else" where a picture may
    show none of the others.

    Needs open_clip (MIT; extra `[clip]`). An embedded world has a profile with a small model (Apache-2.0); other models
    come under their publishers' licences (OpenAI's CLIP: MIT).

    Args:
        profile: An embedded world, or a name for this set-up.
        model: A folder or a Hub id with `open_clip_config.json` and safetensors.
        revision: The commit, for a Hub id.
        classes: Property -> its values, each with the words for it where those are not the value itself, e.g.
            `{"object": {"church": ["church", "chapel"], "other": ["house"]}}` or `{"object": ["church", "house"]}`.
        templates: What surrounds the words; each word goes into each.
        apart: Property -> values of which none is compared with another, such as kinds of one thing: each is compared
            with itself and with the values that are not among them.
        threshold: Probability from which a value counts as shown, in (0, 1); the most likely one where None.
        device: Where the model runs.

    Raises:
        ValueError: A world with a model, another profile without one, a property with fewer than two values, a
            template without its place, or a threshold outside (0, 1).
        FileNotFoundError: No such model.
        ImportError: The extra is not installed.
    """

    def __init__(
        self,
        profile: str = worlds.DEFAULT,
        *,
        model: str | Path | None = None,
        revision: str | None = None,
        classes: Classes | None = None,
        templates: Sequence[str] = ("a photo of a {}",),
        apart: Mapping[str, Sequence[str]] | None = None,
        threshold: float | None = None,
        device: str = "cpu",
    ) -> None:
        if threshold is not None and not 0 < threshold < 1:
            raise ValueError(f"expected a threshold between 0 and 1, got {threshold}")
        known = of_worlds("clip_zeroshot")
        texts: Mapping[str, Mapping[str, Sequence[str]]]
        if profile in known and (clip := worlds.get(profile).clip):
            if model is not None or classes is not None:
                raise ValueError(f"expected another profile name with a model or classes of your own, got {profile!r}")
            model, texts = clip.folder, clip.texts
        elif model is None or classes is None:
            raise ValueError(
                f"expected a model and classes for clip_zeroshot/{profile}, got none; only "
                f"{' or '.join(map(repr, known))} has its own"
            )
        else:
            texts = spell(classes, templates)
        folder = model_folder(model, revision, (_CONFIG,))
        self._model, self._preprocess, tokenizer = load_open_clip(folder, device)
        self._device, self._threshold, self._apart = device, threshold, dict(apart or {})
        self._embeddings = {
            name: torch.stack([self._embed(tokenizer(list(captions))) for captions in values.values()])
            for name, values in texts.items()
        }
        self.sees = {name: tuple(values) for name, values in texts.items()}
        self.name = f"clip_zeroshot/{own_profile(profile)}" + ("" if threshold is None else f"@{threshold:g}")
        self.fingerprint = Fingerprint(
            files=file_hashes(folder),
            classes={
                name: {value: list(captions) for value, captions in values.items()} for name, values in texts.items()
            },
            threshold=threshold,
            rule="softmax of scaled cosines over the property's values, mean embedding of a value's texts"
            + "".join(f"; {', '.join(apart)} of {name} not against each other" for name, apart in self._apart.items()),
            preprocessing="open_clip's transform of the folder for inference, one at a time",
        )

    @torch.inference_mode()
    def look(self, picture: Image.Image, wants: Mapping[str, str]) -> Verdict:
        """See `PictureJudge.look`."""
        pixels = self._preprocess(picture)[None].to(self._device)
        embedding = self._model.encode_image(pixels, normalize=True)[0]
        seen, probability = True, 1.0
        for name, value in wants.items():
            rivals = self._rivals(name, value)
            index = rivals.index(value)
            rows = self._embeddings[name][[self.sees[name].index(rival) for rival in rivals]]
            shares = (self._model.logit_scale.exp() * rows @ embedding).softmax(0)
            share = float(shares[index])
            seen &= int(shares.argmax()) == index if self._threshold is None else share >= self._threshold
            probability *= share
        return Verdict(seen, probability)

    def _rivals(self, name: str, value: str) -> list[str]:
        """The values that a picture which should show one of them is compared with, itself among them."""
        apart = self._apart.get(name, ()) if value in self._apart.get(name, ()) else ()
        return [other for other in self.sees[name] if other == value or other not in apart]

    @torch.inference_mode()
    def _embed(self, tokens: Tensor) -> Tensor:
        mean: Tensor = self._model.encode_text(tokens.to(self._device), normalize=True).mean(0)
        return torch.nn.functional.normalize(mean, dim=0)


def spell(classes: Classes, templates: Sequence[str]) -> dict[str, dict[str, tuple[str, ...]]]:
    """Property -> value -> its texts: every word of a value in every template.

    Raises:
        ValueError: No properties, fewer than two values of one, a value without words, or a template without `{}`.
    """
    if not classes or not templates or any(template.count("{}") != 1 for template in templates):
        raise ValueError(
            f"expected properties, and templates with one {{}} each, got {dict(classes)} and {list(templates)}"
        )
    table = {}
    for name, values in classes.items():
        words = dict(values) if isinstance(values, Mapping) else {value: (value,) for value in values}
        spelled = {
            value: (spelling,) if isinstance(spelling, str) else tuple(spelling) for value, spelling in words.items()
        }
        if len(spelled) < 2 or not all(spelled.values()):
            raise ValueError(f"expected at least two values of {name!r} with words for each, got {spelled}")
        table[name] = {
            value: tuple(template.format(word) for word in spellings for template in templates)
            for value, spellings in spelled.items()
        }
    return table


def load_open_clip(folder: Path, device: str) -> tuple[Any, Any, Any]:
    """The model, its preprocessing and its tokenizer from a local folder, without the network.

    Raises:
        ImportError: The extra is not installed.
        ValueError: A text tower or tokenizer that would be fetched from the Hub, or pickles beside the weights.
    """
    try:
        import open_clip
    except ImportError:
        raise ImportError("clip_zeroshot needs the extra [clip]: pip install 'erasers[clip]'") from None
    try:
        text = value_of(value_of(read_json(folder / _CONFIG), "model_cfg", dict), "text_cfg", dict)
    except ValueError as error:
        raise ValueError(f"expected the configuration of an open_clip model in {folder / _CONFIG}: {error}") from None
    for key, what in (("hf_model_name", "text tower"), ("hf_tokenizer_name", "tokenizer")):
        if text.get(key):
            raise ValueError(f"expected a {what} of open_clip's own in {folder}, got {text[key]} of the Hub")
    if pickles := pickled(folder):
        raise ValueError(f"expected weights as safetensors alone in {folder}, got {pickles[0].name}, too; remove it")
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}", device=device)
    # A new open_clip model is in training mode.
    return model.eval().requires_grad_(False), preprocess, open_clip.get_tokenizer(f"local-dir:{folder}")
