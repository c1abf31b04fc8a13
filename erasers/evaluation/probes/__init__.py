"""Measurements that look behind what a prompt draws: traces in weights, what is hidden, and what else went."""
