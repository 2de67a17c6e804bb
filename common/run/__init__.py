"""One run from its command line to its last line: processes, what is built, what is said."""
