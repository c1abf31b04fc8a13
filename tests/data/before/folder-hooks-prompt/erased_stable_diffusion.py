"""StableDiffusionPipeline that is erased while it runs. Needs the library erasers.

A folder that this library saved:

    DiffusionPipeline.from_pretrained(FOLDER, variant="unerased", trust_remote_code=True)

Any other, with a patch (a file, a folder with one, a Hub id, or several):

    custom = {"custom_pipeline": "erased_stable_diffusion.py", "trust_remote_code": True}
    DiffusionPipeline.from_pretrained(BASE, **custom, erasure=PATCH)
"""

from diffusers import StableDiffusionPipeline

from erasers.dropin import Erased


class ErasedStableDiffusionPipeline(Erased, StableDiffusionPipeline):
    """StableDiffusionPipeline with the component `erasure`; it cannot be made without one."""
