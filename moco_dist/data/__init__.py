"""Images pass through stages: index, store, decode and crop on the host, operations on the device.

`index` tells which images a source holds and of which classes they are, `store` reads and crops them, `augment` does
the rest on the device. `stream` makes a step's batch out of these by keyed random numbers, and `loader` makes
batches ahead of time.
"""
