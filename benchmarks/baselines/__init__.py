"""Our own code of what the trainer is compared with: a bare step, the authors' trainer, one made with lightly."""
