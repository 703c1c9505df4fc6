"""How a method is computed: in parts, on ranks, in a precision, and how its state is kept."""
