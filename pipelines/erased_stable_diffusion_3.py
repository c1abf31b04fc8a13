"""StableDiffusion3Pipeline that is erased while it runs. Needs the library erasers.

A folder that this library saved:

    DiffusionPipeline.from_pretrained(FOLDER, variant="unerased", trust_remote_code=True)

Any other, with a patch (a file, a folder with one, a Hub id, or several):

    custom = {"custom_pipeline": "erased_stable_diffusion_3.py", "trust_remote_code": True}
    DiffusionPipeline.from_pretrained(BASE, **custom, erasure=PATCH)
"""

from diffusers import StableDiffusion3Pipeline

from erasers.dropin import Erased


class ErasedStableDiffusion3Pipeline(Erased, StableDiffusion3Pipeline):
    """StableDiffusion3Pipeline with the component `erasure`; it cannot be made without one."""
