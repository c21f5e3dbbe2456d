"""Many edits in a table that survives interruptions: each alone, one on top of another, or until hard ones are found."""
