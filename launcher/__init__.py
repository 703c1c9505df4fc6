"""Take a config to a job on a SLURM cluster, and look after it: submit, preflight, status, logs, sweeps."""
