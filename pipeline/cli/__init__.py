"""The command line, `oneshot`: a module a group of subcommands; `main` puts them together."""
