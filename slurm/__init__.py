"""The cluster's side: profiles, train.sbatch, and a real SLURM in a directory."""
