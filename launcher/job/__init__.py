"""The code that runs inside a job, on its nodes: it starts the ranks, heeds SLURM's signals and requeues the job."""
