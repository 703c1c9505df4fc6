"""Images: sources, the resumable order of batches, decode and crop in workers, augmentation on the device."""
