"""What is computed: a method's loss, its keys, what it does before and after a step."""
