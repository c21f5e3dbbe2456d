"""Many edits in a table that survives interruptions: each alone, one on another, or until hard cases are found."""
