"""Architecture search: learn from the architectures of other tasks which one to train for yours."""
