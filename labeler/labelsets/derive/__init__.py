"""Label sets made from label sets: recoded, chosen from, merged, imported."""
