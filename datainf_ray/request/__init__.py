"""A configuration understood: files found, model inspected, identity taken. Nothing is started, no weight is read."""
