"""Which method for which model and concept, by what was measured."""
