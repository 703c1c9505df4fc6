"""Write the encoder of a run in the formats of other programs."""
