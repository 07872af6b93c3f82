"""What runs networks: one file per runtime, and `registry.RUNTIMES`, the one table of all of them."""
