"""The network, its weights, the model file and what is fitted after training."""
