"""Raw recordings: formats, readers, filters."""
