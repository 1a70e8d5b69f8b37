"""The vectorised engine by name; what it does is in _batched.py, which needs torch."""

from tutti.domain.spec import JobSpec, Positive
from tutti.ports.training import Trainer
from tutti.sim.engines.port import CannotCompute, Engine, engines
from tutti.sim.federation import Federation


@engines.register("vectorised")
def vectorised(
    device: str = "auto",
    tf32: bool = False,
    group: Positive | None = None,
    *,
    spec: JobSpec,
    trainer: Trainer,
    federation: Federation,
) -> Engine:
    """The nodes of a cohort as one batched computation in torch, on a GPU (device=cuda:0) or the CPU.

    With `tf32`, a GPU rounds the factors of float32 products to 11 bits. `group` nodes are computed at once; without
    it, as many as there is room for.
    """
    if not hasattr(trainer, "module"):
        raise CannotCompute("the model is not made of torch layers")
    from tutti.sim.engines._batched import Vectorised

    return Vectorised(spec, trainer, federation, device=device, tf32=tf32, group=group)
