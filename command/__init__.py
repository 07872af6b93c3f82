"""The ground: what every command line shares. Knows neither torch nor anything of the field."""
