"""Make a run that goes on where a checkpoint of the authors' code stands."""
