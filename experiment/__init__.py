"""The conductor: whole experiments over the four other folders, which know nothing of it."""
