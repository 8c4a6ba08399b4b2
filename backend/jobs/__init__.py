"""Jobs: a request in a database row, drawn by a worker, told to whoever watches."""
