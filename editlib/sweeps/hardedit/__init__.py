"""Building a set like HardEdit: authors write edit cases, and those that collapse a model are kept."""
