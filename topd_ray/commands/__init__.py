"""What each `topd` command does, one file a command. No module here imports Ray."""
