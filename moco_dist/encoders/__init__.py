"""Encoders as modules: out of a run, or out of the weights of any program, with the preprocessing that they expect."""
