"""What everything stands on: errors, command lines, log, interrupts, files, text."""
