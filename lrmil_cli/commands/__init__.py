"""One file per command: its options, one chain of calls into the library, one summary line."""
