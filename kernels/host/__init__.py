"""Operators on strings, sequences, maps and optionals. Importing this package fills the table."""
