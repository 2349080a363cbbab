"""What needs no game: result codes, checks of numbers, times, texts, files, devices."""
