"""Selection from data that refits the next layer: ThiNet and LASSO regression."""
