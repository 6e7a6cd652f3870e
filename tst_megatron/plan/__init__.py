"""Plan a run before it waits in a queue: memory, time, price, and what the method gains."""
