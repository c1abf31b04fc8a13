"""An audit of a patch: everything that can be tried on a model, with a budget, its controls and what was not tried."""
