"""FluxPipeline that is erased while it runs. Needs the library erasers; see help("erasers.dropin")."""

from diffusers import FluxPipeline

from erasers.dropin import Erased


class ErasedFluxPipeline(Erased, FluxPipeline):
    """FluxPipeline with the component `erasure`; it cannot be made without one."""
