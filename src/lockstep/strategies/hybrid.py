"""hybrid: a mesh of ranks, whose rows are pipelines, and whose columns share a stage's gradients.

Each pipeline takes a block of the shards; a stage's gradients are added over the column along the
tree over all shards. Neither the number of pipelines nor that of stages shows in the bits.
"""

from torch.distributed.device_mesh import init_device_mesh

from lockstep.strategies import Setup
from lockstep.strategies.pipeline import Pipeline


def hybrid(setup: Setup) -> Pipeline:
    """Return this rank's stage: number rank mod `stages` of pipeline rank div `stages`."""
    device = next(setup.model.parameters()).device.type
    size = (setup.world.size // setup.run.stages, setup.run.stages)
    mesh = init_device_mesh(device, size, mesh_dim_names=("replica", "stage"))
    groups = mesh.get_group("stage"), mesh.get_group("replica")
    return Pipeline(setup, *groups)
