"""Stand-ins for the memory code of other programs. Importing one imports nothing of theirs."""
