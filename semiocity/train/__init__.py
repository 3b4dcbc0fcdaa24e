"""Training: one loop for every task, on the DeepSpeed engine."""
