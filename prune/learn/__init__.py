"""What acts on a model while it trains: plain objects that a training loop calls. No loop and no data here."""
