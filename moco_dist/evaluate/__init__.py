"""What was learned: features and what can be told from them."""
