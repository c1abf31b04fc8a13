"""What the trainings of all worlds share: the loop, the command line, and how a trained model is saved."""
