"""Why a slim network is not as fast as its MACs promise: the time of every layer, dense and slim, with causes."""
