"""The built-in tasks, by name in a config: regression, text, digits."""
