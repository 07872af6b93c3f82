"""The conductor: whole experiments over the other folders, which know nothing of it."""
