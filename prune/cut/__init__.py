"""Surgery: kept channels become a new slim model, and the proof that it computes what it should."""
