"""Items of other tools' annotations -> items of the InternVL format; pure functions on parsed JSON."""
