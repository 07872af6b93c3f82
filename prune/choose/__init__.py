"""Which channels stay: scores and a recipe become kept channels."""
