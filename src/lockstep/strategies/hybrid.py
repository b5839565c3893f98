"""hybrid: a mesh of ranks, whose rows are pipelines, and whose columns share a stage's gradients.

Each pipeline takes a block of the shards; a stage's gradients are added over the column along the
tree over all shards. Neither the number of pipelines nor that of stages shows in the bits.
"""

from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from lockstep.distributed.world import World
from lockstep.pipeline.config import Run
from lockstep.strategies import Objective
from lockstep.strategies.pipeline import Pipeline


def hybrid(
    run: Run, model: nn.Module, objective: Objective, world: World, shape: tuple[int, int, int]
) -> Pipeline:
    """Return this rank's stage of its pipeline: stage rank mod `stages` of row rank div `stages`.

    Args:
        shape: (C, H, W) of an image.
    """
    device = next(model.parameters()).device.type
    size = (world.size // run.stages, run.stages)
    mesh = init_device_mesh(device, size, mesh_dim_names=("replica", "stage"))
    groups = mesh.get_group("stage"), mesh.get_group("replica")
    return Pipeline(run, model, objective, shape, *groups)
