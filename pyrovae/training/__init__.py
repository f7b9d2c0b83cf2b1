"""Trains a pair: fit, CompiledSVI, checkpoints, schedules. Imports no model."""
