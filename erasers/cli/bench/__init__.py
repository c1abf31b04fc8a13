"""`erase bench`: run tasks of the benchmark, and check, compare and show their results."""

from erasers.cli.bench.app import bench

__all__ = ["bench"]
