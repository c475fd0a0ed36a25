"""Training: the trainer, its state, the epochs, evaluation, models, optimizers and batches."""
