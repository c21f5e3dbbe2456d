"""Many edits with a table that survives interruptions: each alone, on top of each other, or until hard cases are found."""
