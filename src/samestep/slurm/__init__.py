"""A run under SLURM: what is asked of its controller, the job's script, each node's part, and how jobs are sent off."""
