"""The report of an evaluation: its tables, drawings and pictures."""
