"""Model files deployed: exported, scored, explained, swept, packaged and served. Conducts `deploy` and `detect`."""
