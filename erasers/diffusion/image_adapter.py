"""IP-Adapters: pictures as prompts of a UNet, beside whose attention they stand inside of a context alone.

Ye et al., "IP-Adapter: Text Compatible Image Prompt Adapter for Text-to-Image Diffusion Models", arXiv 2308.06721.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.nn import functional

from erasers import worlds
from erasers.diffusion.adaptors.adaptor import module_of
from erasers.diffusion.adaptors.table import adaptor_of
from erasers.diffusion.soft import quiet
from erasers.files.reading import at_home
from erasers.models.families import UnsupportedPipeline
from erasers.models.loading import load_component, refuse_code_and_pickles, weights_variant

if TYPE_CHECKING:
    from PIL import Image

_ENCODER = "image_encoder"
_PARTS = ("image_proj", "ip_adapter")
_READ = ("proj.weight", "latents")
"""Of the image projections that diffusers knows, what tells those that read a picture by CLIP alone."""


class ImageAdapter:
    """An IP-Adapter on the weights and the device of a pipeline, which has it only inside of `placed`.

    What it says of a picture goes through keys and values of its own in every cross-attention, whose results are added
    to those of the text: diffusers' processors do that.

    Args:
        pipe: Of Stable Diffusion 1, 2 or XL; it is left as it is.
        source: A file as published ones are (`ip-adapter_sd15.safetensors`), with the folder `image_encoder` beside it,
            or a folder with one such file; "auto": that of an embedded model.

    Raises:
        UnsupportedPipeline: Another family.
        ValueError: A pipeline with an adapter of its own, a file that is no such adapter or one for another UNet, or
            "auto" for a model that is not embedded.
        FileNotFoundError: No such file.
        ModelNotFound: An encoder that cannot be loaded.
    """

    def __init__(self, pipe: Any, source: str | Path) -> None:
        check_adaptable(pipe)
        file = adapter_file(pipe, source)
        weights, encoder = _read(file), file.parent / _ENCODER
        if not (encoder / "config.json").is_file():
            raise FileNotFoundError(f"expected the encoder of pictures in {encoder}, got none")
        self.encoder, self.extractor = _load_encoder(encoder, pipe), None
        with _as_it_was(pipe):
            pipe.image_encoder = self.encoder
            try:
                with quiet():
                    pipe.load_ip_adapter(weights, subfolder="", weight_name="")
            except (KeyError, RuntimeError, ValueError) as error:
                reason = str(error).strip().splitlines()[0][:200]
                raise ValueError(
                    f"expected an IP-Adapter for this UNet in {file.name}, got another: {reason}"
                ) from None
            unet = module_of(pipe, "unet")
            self._processors, (self._projection,) = unet.attn_processors, unet.encoder_hid_proj.image_projection_layers
            self.extractor = pipe.feature_extractor
        for module in self.modules():
            module.eval().requires_grad_(False)

    def modules(self) -> list[nn.Module]:
        """What has weights, but for the encoder of pictures."""
        return [self._projection, *(value for value in self._processors.values() if isinstance(value, nn.Module))]

    def forget_encoder(self) -> None:
        """Let go of the encoder, which is larger than the UNet of Stable Diffusion 1; tokens alone are read then."""
        self.encoder = None

    @torch.no_grad()
    def tokens(self, pipe: Any, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """What cross-attention would read of pictures `[n, k, d]`, in float32."""
        from diffusers.models.embeddings import ImageProjection

        with self.placed(pipe):
            said, _ = pipe.encode_image(
                list(pictures), pipe.unet.device, 1, not isinstance(self._projection, ImageProjection)
            )
        return torch.as_tensor(self._projection(said)).float()

    @contextmanager
    def placed(self, pipe: Any, *, scale: float = 1.0, projected: bool = False) -> Iterator[None]:
        """Inside, the pipeline takes `ip_adapter_image`, and its denoiser reads image tokens.

        Args:
            pipe: A pipeline like that which it was made for, whatever its weights.
            scale: Of what the picture adds.
            projected: The denoiser is called with tokens, as `tokens` gives them, and not by the pipeline.
        """
        with _as_it_was(pipe):
            unet = module_of(pipe, "unet")
            for processor in self._processors.values():
                if hasattr(processor, "scale"):
                    processor.scale = [scale]
            unet.set_attn_processor(dict(self._processors))
            unet.encoder_hid_proj = nn.Identity() if projected else _several(self._projection)
            unet.config.encoder_hid_dim_type = "ip_image_proj"
            pipe.image_encoder, pipe.feature_extractor = self.encoder, self.extractor
            yield


def refined(tokens: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """softmax(Q T' / sqrt(d)) T: tokens of a picture as means of tokens of a text, whose weights the picture chooses.

    Source: Li et al., arXiv 2505.11131, text-guided refinement.

    Args:
        tokens: Q of the picture `[n, k, d]`.
        states: T of the text `[n, tokens, d]`.
    """
    return functional.scaled_dot_product_attention(tokens, states.to(tokens), states.to(tokens))


def check_adaptable(pipe: Any) -> None:
    """Refuse a pipeline that takes no IP-Adapter here.

    Raises:
        UnsupportedPipeline: Another family.
        ValueError: One is loaded already.
    """
    if adaptor_of(pipe).denoiser != "UNet2DConditionModel" or not hasattr(pipe, "load_ip_adapter"):
        raise UnsupportedPipeline(
            "expected a Stable Diffusion 1, 2 or XL pipeline (whose UNet takes an IP-Adapter), got "
            f"{type(pipe).__name__}"
        )
    if module_of(pipe, "unet").encoder_hid_proj is not None:
        raise ValueError("expected a pipeline without an IP-Adapter, got one that has it; pipe.unload_ip_adapter()")


def adapter_file(pipe: Any, source: str | Path) -> Path:
    """The file of an IP-Adapter; arguments and errors as for `ImageAdapter`."""
    if source == "auto":
        world = worlds.find(str(pipe.config.get("_name_or_path")))
        if world is None or world.ip_adapter is None:
            raise ValueError(
                "expected an IP-Adapter for this model, got none, since only embedded models have one in the package; "
                "pass adapter=FILE, such as models/ip-adapter_sd15.safetensors of h94/IP-Adapter"
            )
        source = world.ip_adapter
    path = at_home(source)
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if len(files) > 1:
        raise ValueError(f"expected one IP-Adapter in {path}, got {len(files)}; name the file")
    if not files or files[0].suffix != ".safetensors" or not files[0].is_file():
        raise FileNotFoundError(f"expected an IP-Adapter as a .safetensors file at {path}, got none")
    return files[0]


def _read(file: Path) -> dict[str, dict[str, torch.Tensor]]:
    """The tensors of a file by part and name."""
    weights: dict[str, dict[str, torch.Tensor]] = {part: {} for part in _PARTS}
    try:
        with safe_open(file, framework="pt") as handle:
            for key in handle.keys():  # noqa: SIM118
                part, _, name = key.partition(".")
                weights.get(part, {})[name] = handle.get_tensor(key)
    except SafetensorError as error:
        raise ValueError(f"expected safetensors in {file.name}, got a damaged file ({error})") from None
    projection, attention = (weights[part] for part in _PARTS)
    if not attention or not any(name in projection for name in _READ) or any("lora" in name for name in attention):
        raise ValueError(
            f"expected an IP-Adapter of pictures in {file.name}, plain or Plus, got another file, or one of faces"
        )
    return weights


def _load_encoder(folder: Path, pipe: Any) -> Any:
    from transformers import CLIPVisionModelWithProjection

    refuse_code_and_pickles(folder.parent, [folder.name])
    variant, dtype = weights_variant(folder, None), pipe.unet.dtype
    return load_component(CLIPVisionModelWithProjection, folder, dtype, variant).to(pipe.unet.device).eval()


def _several(projection: nn.Module) -> Any:
    from diffusers.models.embeddings import MultiIPAdapterImageProjection

    return MultiIPAdapterImageProjection([projection])


@contextmanager
def _as_it_was(pipe: Any) -> Iterator[None]:
    """What is done to a pipeline inside by an adapter is undone."""
    unet = module_of(pipe, "unet")
    processors, projection, kind = unet.attn_processors, unet.encoder_hid_proj, unet.config.encoder_hid_dim_type
    encoder, extractor = pipe.image_encoder, pipe.feature_extractor
    try:
        yield
    finally:
        pipe.image_encoder, pipe.feature_extractor = encoder, extractor
        unet.encoder_hid_proj, unet.config.encoder_hid_dim_type = projection, kind
        unet.set_attn_processor(processors)
