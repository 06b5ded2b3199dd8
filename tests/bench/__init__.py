"""Speed, as ratios within one run: `make bench` prints a table and adds a line to a history."""
