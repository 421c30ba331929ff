"""Where images come from: folders, archives, the official download, generated glyphs."""
