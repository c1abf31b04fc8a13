"""What gradient attacks on Stable Diffusion 1 and 2 share: soft tokens, the simplex, and the denoising loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from erasers.diffusion.needs import Summands, mean_in_parts
from erasers.models.families import UnsupportedPipeline
from erasers.models.ports import refuse_wrapped
from erasers.models.prompts import converted
from erasers.models.unet_inputs import refuse_more_inputs


def check_supported(pipe: Any) -> None:
    """Refuse a pipeline that gradient attacks do not know how to call.

    Raises:
        UnsupportedPipeline: Names what is supported.
        ValueError: Of a supported class, with a noise schedule or a prediction that is not.
    """
    refuse_wrapped(pipe)
    found = {name: getattr(pipe, name, None) for name in ("unet", "vae", "text_encoder", "tokenizer")}
    # Seen through `torch.compile`.
    parts = {name: type(getattr(part, "_orig_mod", part)).__name__ for name, part in found.items()}
    known = parts["unet"] == "UNet2DConditionModel" and parts["text_encoder"] == "CLIPTextModel"
    if not known or parts["vae"] != "AutoencoderKL" or getattr(pipe, "text_encoder_2", None) is not None:
        raise UnsupportedPipeline(
            "expected a Stable Diffusion 1 or 2 pipeline (UNet2DConditionModel, AutoencoderKL and one CLIPTextModel), "
            f"got {type(pipe).__name__} with {', '.join(f'{name} {kind}' for name, kind in parts.items())}"
        )
    refuse_more_inputs(pipe)
    kind = pipe.scheduler.config.get("prediction_type", "epsilon")
    if kind not in ("epsilon", "v_prediction") or not hasattr(pipe.scheduler, "alphas_cumprod"):
        raise ValueError(
            f"expected a scheduler with alphas_cumprod that predicts epsilon or v_prediction, got "
            f"{type(pipe.scheduler).__name__} that predicts {kind}"
        )


class SoftPrompt:
    """A prompt in which soft tokens stand in the place of words.

    The tokeniser needs something to put there: for each word, one token that the rest of the prompt does not use, as
    often as the word has soft tokens. A hook on the token embedding then replaces what that token looks up.

    Args:
        pipe: A Stable Diffusion 1 or 2 pipeline.
        text: The prompt with each word once.
        counts: Word -> number of its soft tokens.
        clip_skip: As for `encode`.

    Raises:
        ValueError: A word that the text does not have once, or so long a text that soft tokens are cut off.
    """

    def __init__(self, pipe: Any, text: str, counts: Mapping[str, int], *, clip_skip: int | None = None) -> None:
        self._pipe, self._counts, self._skip = pipe, dict(counts), clip_skip
        for word in counts:
            if text.count(word) != 1:
                raise ValueError(f"expected {word!r} once in the prompt, got it {text.count(word)} times in {text!r}")
        rest = text
        for word in counts:
            rest = rest.replace(word, " ")
        used = set(pipe.tokenizer(converted(pipe, pipe.tokenizer, rest)).input_ids)
        self._carriers: dict[str, int] = {}
        for word, count in counts.items():
            carrier = _carrier(pipe.tokenizer, used)
            used.add(carrier)
            self._carriers[word] = carrier
            text = text.replace(word, " ".join([decode(pipe.tokenizer, torch.tensor([carrier]))] * count))
        self.text = text
        self.ids = tokenise(pipe, text)
        for word, count in counts.items():
            found = int((self.ids == self._carriers[word]).sum())
            if found != count:
                raise ValueError(
                    f"expected room for {count} soft tokens of {word!r}, got {found}; the prompt is too long for the "
                    f"{pipe.tokenizer.model_max_length} tokens of the text encoder"
                )

    @contextmanager
    def placed(self, tokens: Mapping[str, torch.Tensor]) -> Iterator[None]:
        """Inside, the text encoder reads `tokens` (word -> embeddings `[k, d]`) wherever it is given `self.text`.

        Other texts, such as a negative prompt, are read as ever. Embeddings `[n, k, d]` are for n rows of that text.
        """

        def put(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: torch.Tensor) -> torch.Tensor:
            ids = args[0] if args else kwargs["input"]
            for word, vectors in tokens.items():
                at = ids == self._carriers[word]
                whole = at.sum(dim=-1, keepdim=True) == self._counts[word]
                rows = int(whole.sum())
                source = vectors.to(output.device, output.dtype)
                source = source.flatten(0, 1) if source.dim() == 3 else source.repeat(rows, 1)
                output = output.masked_scatter((at & whole).unsqueeze(-1), source) if rows else output
            return output

        handle = self._pipe.text_encoder.get_input_embeddings().register_forward_hook(put, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def states(self, tokens: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Text states `[1, n, d]` of the prompt with these soft tokens, with gradients to them.

        One row for each of the first dimension of embeddings `[rows, k, d]`.
        """
        rows = max((len(vectors) for vectors in tokens.values() if vectors.dim() == 3), default=1)
        with self.placed(tokens):
            return encode(self._pipe, self.ids.expand(rows, -1), self._skip)


def tokenise(pipe: Any, texts: str | Sequence[str]) -> torch.Tensor:
    """Token ids `[texts, n]`, padded and cut as the pipeline does when it draws."""
    tokenizer = pipe.tokenizer
    batch = [converted(pipe, tokenizer, text) for text in ([texts] if isinstance(texts, str) else texts)]
    options = {"padding": "max_length", "max_length": tokenizer.model_max_length, "truncation": True}
    ids: torch.Tensor = tokenizer(batch, return_tensors="pt", **options).input_ids
    return ids


def encode(pipe: Any, ids: torch.Tensor, clip_skip: int | None = None) -> torch.Tensor:
    """Text states `[rows, n, d]` of token ids `[rows, n]`, as the denoiser gets them when the pipeline draws.

    With `clip_skip` these are the states before so many last layers, after the final norm.
    """
    encoder = pipe.text_encoder
    mask = None
    if getattr(encoder.config, "use_attention_mask", False):
        # Padded behind the end token, which may be the padding token itself: all up to the first end token counts.
        ends = (ids == pipe.tokenizer.eos_token_id).long()
        mask = ((ends.cumsum(dim=-1) - ends) == 0).long().to(encoder.device)
    ids = ids.to(encoder.device)
    states: torch.Tensor
    if clip_skip is None:
        states = encoder(ids, attention_mask=mask)[0]
    else:
        layers = encoder(ids, attention_mask=mask, output_hidden_states=True).hidden_states
        states = getattr(encoder, "text_model", encoder).final_layer_norm(layers[-(clip_skip + 1)])
    return states


def token_table(pipe: Any) -> torch.Tensor:
    """The token embeddings `[vocabulary, d]` of the text encoder as it is now."""
    table: torch.Tensor = pipe.text_encoder.get_input_embeddings().weight.detach()
    return table


def whole_words(tokenizer: Any) -> torch.Tensor:
    """Ids of the tokens that can be typed as words: decoded and tokenised again, they are the same token."""
    texts = {one: decode(tokenizer, torch.tensor([one])) for one in range(len(tokenizer))}
    typed = {one: text for one, text in texts.items() if text and text.isprintable()}
    again = tokenizer(list(typed.values()), add_special_tokens=False).input_ids
    return torch.tensor([one for one, back in zip(typed, again, strict=True) if back == [one]])


def decode(tokenizer: Any, ids: torch.Tensor) -> str:
    """The text of token ids `[n]`; tokenised again, pieces of words may become other tokens."""
    text: str = tokenizer.decode(ids.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return " ".join(text.split())


def project_simplex(rows: torch.Tensor) -> torch.Tensor:
    """The nearest point of the probability simplex, row by row; rows `[..., n]`.

    Source: Duchi et al., "Efficient Projections onto the l1-Ball", ICML 2008, figure 1.
    """
    ordered = rows.sort(dim=-1, descending=True).values
    places = torch.arange(1, rows.shape[-1] + 1, device=rows.device, dtype=rows.dtype)
    excess = (ordered.cumsum(dim=-1) - 1) / places
    count = (ordered > excess).sum(dim=-1, keepdim=True)
    return (rows - excess.gather(-1, count - 1)).clamp(min=0)


def nearest_tokens(vectors: torch.Tensor, table: torch.Tensor, allowed: torch.Tensor | None = None) -> torch.Tensor:
    """Ids `[k]` of the tokens nearest by cosine to vectors `[k, d]`, among `allowed` ids or in the whole table."""
    candidates = table if allowed is None else table[allowed.to(table.device)]
    similar = functional.normalize(vectors.float(), dim=-1) @ functional.normalize(candidates.float(), dim=-1).T
    best = similar.argmax(dim=-1)
    return best if allowed is None else allowed.to(best.device)[best]


@torch.no_grad()
def latents_of(pipe: Any, images: Sequence[Any]) -> torch.Tensor:
    """Scaled latents `[n, c, h, w]` of pictures in float32: the mean of the VAE's posterior, without its noise."""
    pixels = pipe.image_processor.preprocess(list(images)).to(pipe.vae.device, pipe.vae.dtype)
    scaled: torch.Tensor = pipe.vae.encode(pixels).latent_dist.mean.float() * pipe.vae.config.scaling_factor
    return scaled


def noised(pipe: Any, latents: torch.Tensor, timesteps: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """z_t = sqrt(a_t) z_0 + sqrt(1 - a_t) noise `[n, c, h, w]`, at timesteps `[n]`.

    That is what the denoiser reads under any scheduler of this noise schedule: those that count in sigmas scale theirs
    (`scale_model_input`) to the same before they call it.
    """
    signal, spread = _scales(pipe, timesteps, latents)
    return signal * latents + spread * noise


def target_of(pipe: Any, latents: torch.Tensor, timesteps: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """What a perfect denoiser predicts `[n, c, h, w]` of latents with that noise: the noise, or the velocity.

    v = sqrt(a_t) noise - sqrt(1 - a_t) z_0 (Salimans and Ho, arXiv 2202.00512, appendix D). Arguments as for `noised`.
    """
    if not predicts_velocity(pipe):
        return noise
    signal, spread = _scales(pipe, timesteps, latents)
    return signal * noise - spread * latents


def predicts_velocity(pipe: Any) -> bool:
    """Whether the denoiser predicts v, not the noise."""
    return bool(pipe.scheduler.config.get("prediction_type", "epsilon") == "v_prediction")


def denoised(pipe: Any, noisy: torch.Tensor, timesteps: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """What the denoiser predicts `[n, c, h, w]` from noised latents, for text states `[n or 1, tokens, d]`."""
    unet = pipe.unet
    states = states.to(unet.dtype).expand(len(noisy), -1, -1)
    output: torch.Tensor = unet(noisy.to(unet.dtype), timesteps.to(noisy.device), encoder_hidden_states=states).sample
    return output


def denoising_loss(
    pipe: Any, latents: torch.Tensor, timesteps: torch.Tensor, noise: torch.Tensor, states: torch.Tensor
) -> torch.Tensor:
    """Mean squared error of the prediction from that of a perfect denoiser.

    Args:
        pipe: A Stable Diffusion 1 or 2 pipeline.
        latents: z_0 `[n, c, h, w]`, scaled.
        timesteps: t `[n]`.
        noise: `[n, c, h, w]`.
        states: Text states `[n or 1, tokens, d]`.
    """
    target = target_of(pipe, latents, timesteps, noise)
    predicted = denoised(pipe, noised(pipe, latents, timesteps, noise), timesteps, states)
    return functional.mse_loss(predicted.float(), target.float())


def denoising_in_parts(
    pipe: Any, latents: torch.Tensor, timesteps: torch.Tensor, noise: torch.Tensor, states: torch.Tensor
) -> Summands:
    """`denoising_loss`, in summands of what may go through the denoiser together."""

    def error(rows: slice) -> torch.Tensor:
        own = states if len(states) == 1 else states[rows]
        return denoising_loss(pipe, latents[rows], timesteps[rows], noise[rows], own)

    return mean_in_parts(len(latents), error)


def gaussian(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Noise of the shape, type and device of a tensor, drawn where the generator is."""
    noise = torch.randn(like.shape, generator=generator, device=generator.device)
    return noise.to(like.device, like.dtype)


@contextmanager
def frozen(pipe: Any) -> Iterator[None]:
    """Inside, no parameter of the pipeline asks for a gradient; afterwards those do that did."""
    modules = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    trained = [parameter for part in modules for parameter in part.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _scales(pipe: Any, timesteps: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """sqrt(a_t) and sqrt(1 - a_t) as `[n, 1, 1, 1]`."""
    alphas = pipe.scheduler.alphas_cumprod.to(like.device)[timesteps.to(like.device)].view(-1, 1, 1, 1)
    return alphas.sqrt().to(like.dtype), (1 - alphas).sqrt().to(like.dtype)


def _carrier(tokenizer: Any, used: set[int]) -> int:
    """The first token that is a word of its own and not in use."""
    for one in range(len(tokenizer)):
        text = decode(tokenizer, torch.tensor([one]))
        if one not in used and text and tokenizer(f"{text} {text}", add_special_tokens=False).input_ids == [one, one]:
            return one
    raise ValueError("expected a token that is a word of its own beside those of the prompt, got none")
