"""What of FSDP2 is private and used all the same; by itself, since it takes seconds to import."""

# The class that FSDPModule.set_custom_reduce_scatter, which is public, wants one derived from.
from torch.distributed.fsdp._fully_shard._fsdp_api import ReduceScatter as ReduceScatter
