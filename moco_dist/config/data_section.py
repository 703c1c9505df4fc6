"""The section `data` says which images a run learns from, and how they are read and augmented."""

from typing import Annotated, Literal

from pydantic import Field

from moco_dist.config.paths import PathText
from moco_dist.config.section import MOST_CHANNELS, Float, Fraction, Int, Interval, Natural, Positive, Section
from moco_dist.errors import shown


class DataSection(Section):
    source: Literal["digits", "mnist", "cifar10", "imagefolder", "synthetic"] = "digits"
    """Where the images come from."""
    root: PathText | None = None
    """Folder of the data: a torchvision root (mnist, cifar10), or a tree of images or its shards (imagefolder)."""
    download: bool = False
    """Let torchvision download mnist or cifar10 into root."""
    channels: Annotated[Int, Field(ge=1, le=MOST_CHANNELS)] | None = None
    """Read the images of an imagefolder as grayscale (1), colour (3), or with other channels as they are; unset, 3."""
    image_size: Annotated[Int, Field(ge=4)] = 8
    """Side of the square crop that the encoder sees, in pixels."""
    enlarge: bool = False
    """Accept images that are smaller than image_size, and scale them up."""
    value_range: Interval | None = None
    """Values of more than 8 bits a channel that become black and white; unset, 0 to 65535, and 0 to 1 of floats."""
    mean: tuple[Float, ...] | None = None
    """Mean of each channel of pixels in 0 to 1; unset, the data set's or ImageNet's, or measured for other channels."""
    std: tuple[Annotated[Float, Field(gt=0)], ...] | None = None
    """Standard deviation of each channel, given together with mean."""
    augmentation: Literal["v1", "v2", "crop_blur"] = "v2"
    """Recipe: v1 and v2 of the papers, or crop and blur alone (grayscale digits)."""
    crop_scale: Interval = (0.2, 1.0)
    """Area of the random crop as a fraction of the image's, least and most."""
    crop_ratio: Interval = (3 / 4, 4 / 3)
    """Width over height of the random crop, least and most."""
    rotation_degrees: Annotated[Float, Field(ge=0, le=180)] = 0.0
    """Largest random rotation to either side; for digits and the like, where colours tell nothing."""
    shear_degrees: Annotated[Float, Field(ge=0, le=60)] = 0.0
    """Largest random slant to either side."""
    elastic_pixels: Annotated[Float, Field(ge=0)] = 0.0
    """Largest shift of a control point of a random elastic distortion."""
    blur_probability: Fraction | None = None
    """Probability of the Gaussian blur; unset, the recipe's."""
    blur_sigma: Interval = (0.1, 2.0)
    """Standard deviation of the Gaussian blur in pixels, least and most."""
    decode: Literal["auto", "cpu", "pillow"] = "auto"
    """cpu: libjpeg-turbo and SIMD; pillow: Pillow alone, several times slower; auto: cpu, or as the run was begun."""
    workers: Natural | Literal["auto"] = 0
    """Processes a rank that decode and crop; 0: the training process does it; auto: by its cores and a batch's time."""
    cache: Literal["auto", "memory", "none"] = "auto"
    """memory: decode small images of one size once, and keep them on the device; auto: where they fit; none: never."""
    samples: Positive = 1024
    """Number of images of the synthetic source."""

    @property
    def channel_count(self) -> int:
        """Return the number of an image's channels."""
        return {"digits": 1, "mnist": 1, "cifar10": 3}.get(self.source) or self.channels or 3

    def check_pixels(self) -> None:
        """Refuse pixel statistics that do not fit the channels, and an empty range of values. Raises ValueError."""
        for key, values in (("mean", self.mean), ("std", self.std)):
            if (self.mean is None) != (self.std is None):
                raise ValueError(f"data.{key} = {shown(values)}: mean and std go together; give both or none")
            if values is not None and len(values) != self.channel_count:
                numbers = f"must have {self.channel_count} numbers, one a channel"
                raise ValueError(f"data.{key} = {list(values)}: {numbers}; add or drop some, or mend data.channels")
        if self.value_range and not self.value_range[0] < self.value_range[1]:
            raise ValueError(f"data.value_range = {list(self.value_range)}: must be [low, high]; swap or raise them")
