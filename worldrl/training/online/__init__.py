"""Fine-tuning in the environment."""
