"""The names of checkpoint files and the number of their format, which a command line needs before torch."""

FORMAT = 2  # of checkpoints and of run folders; 1 said less about its data
LOCK = ".lock"
CURRENT, PREVIOUS = "checkpoint.pt", "checkpoint-previous.pt"
