"""Build the small network that a run on digits is compared with."""

from torch import Tensor, nn


class SmallNet(nn.Module):
    """A small convolutional network is what one would train on digits without pretraining.

    Two convolutions, each with ReLU and a pool of 2, and a hidden layer; `features` is its output, [N, feature_dim].

    Args:
        channels: of the images.
        size: side of the images in pixels, at least 4.
    """

    feature_dim = 128

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        side = size // 4  # of the last map
        self.layers = nn.Sequential(
            *(nn.Conv2d(channels, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(64 * side * side, self.feature_dim), nn.ReLU()),
        )

    def features(self, x: Tensor) -> Tensor:
        """Map [N, channels, size, size] to [N, feature_dim]."""
        out: Tensor = self.layers(x)
        return out
