"""From a config to a job on a SLURM cluster that survives it: submitit, preflight, status, logs, sweeps."""
