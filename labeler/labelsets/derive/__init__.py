"""Write label sets made from label sets: recoded, selected, merged, imported."""
