"""One decision for every channel of a model: the plan, the weights that make channels together, the layers and the model that run under it."""
