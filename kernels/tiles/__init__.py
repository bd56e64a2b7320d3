"""Tile bodies: inner loops with an implementation for one instruction set."""
