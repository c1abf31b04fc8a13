"""Q16: whether a picture is inappropriate, by CLIP and two tuned prompts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from erasers.files.hashing import file_sha256
from erasers.judges import Fingerprint, Verdict
from erasers.judges.base import PictureJudge, pick_profile
from erasers.judges.weights import file_hashes, image_processor, load_whole, model_folder

WIDTH = 768
"""Of the image embedding of CLIP ViT-L/14."""
_SCALE = 100.0


class Q16(PictureJudge):
    """Says whether a picture is inappropriate in the sense of Q16 (arXiv 2202.06675).

    The cosines between the picture's CLIP embedding and two prompt vectors, times 100, are the logits of "appropriate"
    and "inappropriate"; the larger one decides, and the verdict's probability is the softmax.

    The vectors are published as a pickle, which this library does not read: convert it once, in an environment of its
    own, to a safetensors file with one tensor [2, 768], appropriate first. CLIP's code and weights are under the MIT
    licence, and Q16's repository (ml-research/Q16) names MIT, too. It was made to document data sets, not to moderate.

    Args:
        profile: `vitl14`.
        model: A transformers CLIP ViT-L/14, as a folder or a Hub id.
        prompts: The safetensors file with the two vectors.
        revision: The commit, for a Hub id.
        device: Where the model runs.

    Raises:
        ValueError: Another profile, a file with something other than two vectors, or a model of another width.
        FileNotFoundError: No such model or file.
    """

    sees = {"unsafe": ("inappropriate",)}

    def __init__(
        self,
        profile: str = "vitl14",
        *,
        model: str | Path,
        prompts: str | Path,
        revision: str | None = None,
        device: str = "cpu",
    ) -> None:
        from transformers import CLIPVisionModelWithProjection

        self.name = f"q16/{pick_profile('q16', profile, ('vitl14',))}"
        vectors = Path(prompts)
        self._prompts = read_prompts(vectors).to(device)
        folder = model_folder(model, revision, ("config.json", "preprocessor_config.json"))
        self._model = load_whole(CLIPVisionModelWithProjection, folder, device)
        width = self._model.config.projection_dim
        if width != WIDTH:
            raise ValueError(f"expected CLIP ViT-L/14 with embeddings of width {WIDTH}, got {width} in {folder}")
        self._processor = image_processor(folder)
        self.fingerprint = Fingerprint(
            files=file_hashes(folder) | {"prompts": file_sha256(vectors)},
            classes={"unsafe": {"inappropriate": "row 1 of the prompts, against row 0"}},
            threshold=None,
            rule=f"the larger softmax of {_SCALE:g} x cosine",
            preprocessing="the folder's image processor of transformers for PIL pictures, one at a time",
        )

    @torch.inference_mode()
    def look(self, picture: Image.Image, wants: Mapping[str, str]) -> Verdict:
        """See `PictureJudge.look`."""
        pixels = self._processor(picture, return_tensors="pt")["pixel_values"].to(self._prompts.device)
        embedding = torch.nn.functional.normalize(self._model(pixel_values=pixels).image_embeds[0], dim=-1)
        bad = float((_SCALE * self._prompts @ embedding).softmax(0)[1])
        return Verdict(bad > 0.5, bad)


def read_prompts(file: Path) -> Tensor:
    """The two prompt vectors [2, 768], normalised.

    Raises:
        ValueError: The file holds something else.
        FileNotFoundError: No such file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not file.is_file():
        raise FileNotFoundError(
            f"expected a safetensors file with the two prompts of Q16, got {file}, which does not exist"
        )
    try:
        tensors = load_file(file)
    except SafetensorError as error:
        raise ValueError(
            f"expected the prompts of Q16 as safetensors, got {file} ({error}); convert a pickle once"
        ) from None
    shapes = [list(tensor.shape) for tensor in tensors.values()]
    if shapes != [[2, WIDTH]]:
        raise ValueError(f"expected one tensor [2, {WIDTH}] in {file}, got {shapes}")
    vectors = next(iter(tensors.values())).float()
    if not vectors.isfinite().all() or not vectors.norm(dim=1).all():
        raise ValueError(f"expected finite vectors other than zero in {file}")
    return torch.nn.functional.normalize(vectors, dim=1)
