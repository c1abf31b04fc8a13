"""StableDiffusionPipeline that is erased while it runs. Needs the library erasers; see help("erasers.dropin")."""

from diffusers import StableDiffusionPipeline

from erasers.dropin import Erased


class ErasedStableDiffusionPipeline(Erased, StableDiffusionPipeline):
    """StableDiffusionPipeline with the component `erasure`; it cannot be made without one."""
