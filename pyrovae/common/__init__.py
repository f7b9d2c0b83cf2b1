"""The ground of every other room: errors, random numbers, files, modes, worker processes."""
