"""A method says what is computed: the loss, the keys, what is done before and after a step."""
