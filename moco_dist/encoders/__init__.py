"""Load encoders as modules, from runs or from the weights of any program, with the preprocessing that they expect."""
