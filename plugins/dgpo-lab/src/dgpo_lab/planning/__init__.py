"""What a run will cost, known before anything is loaded: operations, memory, seconds, money."""
