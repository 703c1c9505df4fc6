"""Keep what belongs to clusters: profiles, train.sbatch, and a real SLURM in a directory."""
