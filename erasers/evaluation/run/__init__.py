"""Running a task, and checking what ran."""
