"""Training: the task, a new model, the trainer's state, checkpoints, search, trackers."""
