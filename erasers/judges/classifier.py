"""Any image classifier of transformers as a judge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image

from erasers.judges import Fingerprint, Verdict
from erasers.judges.base import PictureJudge, own_profile
from erasers.judges.weights import file_hashes, image_processor, load_whole, model_folder


class Classifier(PictureJudge):
    """Says whether one of a value's labels is among the k most likely answers of an image classifier.

    The verdict's probability is the softmax summed over the value's labels. Only safetensors are read, and no code from
    the model's folder is run; the model's licence is its publisher's (`microsoft/resnet-50`, say, is Apache-2.0, while
    ImageNet's pictures are for research).

    Args:
        profile: A name for this set-up; by default the model's name and `@top<k>`.
        model: A folder or a Hub id.
        revision: The commit, for a Hub id.
        classes: Value -> the labels that show it, by name or number, e.g. `{"church": ["church, church building"]}`; by
            default every label is a value of its own.
        kind: The property that these are values of.
        top: How many answers count.
        device: Where the model runs.

    Raises:
        ValueError: A label that the model does not have or has twice, or a top outside 1..number of labels - 1.
        FileNotFoundError: No such model.
    """

    def __init__(
        self,
        profile: str = "",
        *,
        model: str | Path,
        revision: str | None = None,
        classes: Mapping[str, Sequence[str | int] | str | int] | None = None,
        kind: str = "object",
        top: int = 1,
        device: str = "cpu",
    ) -> None:
        from transformers import AutoModelForImageClassification

        folder = model_folder(model, revision, ("config.json", "preprocessor_config.json"))
        self._model = load_whole(AutoModelForImageClassification, folder, device)
        self._processor = image_processor(folder)
        self._device = device
        labels = [str(self._model.config.id2label[index]) for index in range(self._model.config.num_labels)]
        if not 1 <= top < len(labels):
            raise ValueError(f"expected a top between 1 and {len(labels) - 1}, got {top}")
        self._kind, self._top = kind, top
        self._classes = pick_labels(classes, labels)
        self.sees = {kind: tuple(self._classes)}
        self.name = f"classifier/{own_profile(profile or f'{Path(model).name}@top{top}')}"
        self.fingerprint = Fingerprint(
            files=file_hashes(folder),
            classes={kind: {value: list(indices) for value, indices in self._classes.items()}},
            threshold=None,
            rule=f"a label among the {top} most likely",
            preprocessing="the folder's image processor of transformers for PIL pictures, one at a time",
        )

    @torch.inference_mode()
    def look(self, picture: Image.Image, wants: Mapping[str, str]) -> Verdict:
        """See `PictureJudge.look`."""
        pixels = self._processor(picture, return_tensors="pt")["pixel_values"].to(self._device)
        shares = self._model(pixel_values=pixels).logits[0].softmax(0)
        first = shares.argsort(descending=True, stable=True)[: self._top].tolist()
        indices = self._classes[wants[self._kind]]
        return Verdict(any(index in first for index in indices), float(shares[list(indices)].sum().clamp_max(1)))


def pick_labels(
    classes: Mapping[str, Sequence[str | int] | str | int] | None, labels: Sequence[str]
) -> dict[str, tuple[int, ...]]:
    """Value -> the indices of its labels.

    Raises:
        ValueError: No classes, a value without labels, a label that is not there, or a name that stands for two.
    """
    times = Counter(labels)
    if classes is None:
        return {label: (index,) for index, label in enumerate(labels) if times[label] == 1}
    indices = {}
    for value, given in classes.items():
        names = [given] if isinstance(given, (str, int)) else list(given)
        indices[value] = tuple(dict.fromkeys(_index(name, labels, times) for name in names))
        if not indices[value]:
            raise ValueError(f"expected at least one label for {value!r}, got none")
    if not indices:
        raise ValueError("expected at least one class, got none")
    return indices


def _index(name: str | int, labels: Sequence[str], times: Mapping[str, int]) -> int:
    if isinstance(name, int):
        if not 0 <= name < len(labels):
            raise ValueError(f"expected a label between 0 and {len(labels) - 1}, got {name}")
        return name
    if times.get(name, 0) > 1:
        numbers = [str(index) for index, label in enumerate(labels) if label == name]
        raise ValueError(
            f"expected a label of its own, got {name!r}, which stands for {', '.join(numbers)}; give a number"
        )
    if name not in times:
        near = [label for label in labels if name.lower() in label.lower()] or labels
        raise ValueError(f"expected a label of the model, got {name!r}; it has {'; '.join(near[:20])}")
    return labels.index(name)
