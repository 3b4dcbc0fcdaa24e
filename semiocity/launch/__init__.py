"""What a login node does: submit jobs to SLURM or to this machine, build the image they run in, and watch them."""
