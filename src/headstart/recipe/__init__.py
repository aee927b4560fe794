"""The loss, the parameter groups and the learning rate schedule of training."""
