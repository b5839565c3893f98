"""A backend of torch.distributed over mpi4py. It imports no other folder."""
