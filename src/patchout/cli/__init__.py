"""The command: a module a command, and what it prints."""
