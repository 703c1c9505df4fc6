"""Give these tests the run and the images that the tests of features use."""

from tests.embed.conftest import images, run_dir

__all__ = ["images", "run_dir"]
