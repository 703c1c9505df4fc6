"""What the trainer is compared with, in code of our own: a bare step, the authors' trainer, one made with lightly."""
