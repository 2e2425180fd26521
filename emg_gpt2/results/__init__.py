"""A run folder, its figures and its report."""
