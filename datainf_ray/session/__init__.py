"""What a caller asks for: attribute, query, plan, check; and a run from its first to its last file."""
