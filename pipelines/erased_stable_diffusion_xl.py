"""StableDiffusionXLPipeline that is erased while it runs. Needs the library erasers; see help("erasers.dropin")."""

from diffusers import StableDiffusionXLPipeline

from erasers.dropin import Erased


class ErasedStableDiffusionXLPipeline(Erased, StableDiffusionXLPipeline):
    """StableDiffusionXLPipeline with the component `erasure`; it cannot be made without one."""
