"""The command line: thin, one module a command; arguments in, exit code out."""
