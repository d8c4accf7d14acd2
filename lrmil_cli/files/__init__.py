"""Every file that passes between commands: its schema, how it is read, how it is written."""
