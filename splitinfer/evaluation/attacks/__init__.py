"""One attack a file; each docstring says its threat setting, its source and what it needs to see."""
