"""The runtimes that run networks, one file each, and `registry.RUNTIMES`, the table of all of them."""
