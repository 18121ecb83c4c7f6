"""What must not happen: hostile files, lost results, wrong numbers. Bad input is made by seeded code; outcomes are tables."""
