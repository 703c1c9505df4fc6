"""Make the encoder that a run begins with: of random weights, or of those that `run.init_from` names."""

from pathlib import Path

from moco_dist.config import Config
from moco_dist.data import sources
from moco_dist.encoders import from_run
from moco_dist.networks import resnet, weights
from moco_dist.ranks.collectives import World
from moco_dist.run.checkpoints import CheckpointIndex


def first_weights(config: Config, checkpoints: CheckpointIndex | None = None) -> Path | None:
    """Choose the file of weights that a run begins from; None where it begins from none.

    Args:
        config: of the run.
        checkpoints: of the run; it goes on from one, and then the weights may be gone.

    Raises:
        UserError: `run.init_from` is a run without weights.
    """
    if not config.run.init_from or (checkpoints is not None and checkpoints.latest() is not None):
        return None
    return from_run.weights_of(Path(config.run.init_from))


def first_encoder(config: Config, data: sources.Data, world: World, start: Path | None) -> resnet.Encoder:
    """Build the query encoder as the run begins, from a file of weights if one is given. Raises UserError."""
    encoder = resnet.build_encoder(config.model, data.train.channels, config.run.seed)
    if start is not None:
        for line in weights.load_backbone_(encoder, start):
            world.tell(f"moco_dist.train: {line}")
    return encoder
