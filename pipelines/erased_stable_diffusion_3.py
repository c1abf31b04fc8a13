"""StableDiffusion3Pipeline that is erased while it runs. Needs the library erasers; see help("erasers.dropin")."""

from diffusers import StableDiffusion3Pipeline

from erasers.dropin import Erased


class ErasedStableDiffusion3Pipeline(Erased, StableDiffusion3Pipeline):
    """StableDiffusion3Pipeline with the component `erasure`; it cannot be made without one."""
