"""The parts of the report's page: its numbers, its plots, its text."""
