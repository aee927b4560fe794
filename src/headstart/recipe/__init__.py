"""What training minimises and how: loss, parameter groups, learning rate schedule."""
