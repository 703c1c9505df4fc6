"""Images in stages: index, store, decode and crop on the host, operations on the device; one stream of keyed batches.

`index` tells which images a source holds and of which classes they are, `store` reads and crops them, `augment` does
the rest on the device. `stream` makes the batches of a step out of these, and `loader` makes them ahead of time.
"""
