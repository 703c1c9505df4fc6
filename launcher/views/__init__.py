"""Find runs and show how they stand: record, queue, status and figures, joined."""
