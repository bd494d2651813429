"""Other tools' files and layouts as rows, and rows as examples: every key is known, or refused by name."""
